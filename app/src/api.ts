// What the app asks of its server beside uploads.

import { type Policy, POLICY } from "./core/policy.ts";
import { type Identity, deviceNames } from "./device/spool.ts";

/** What one agrees to by using a code. */
export interface Terms {
  contributor: string; policy_version: string; retention_days: number; text: string | null; faces_blurred: boolean;
}

/** A sentence from the server, or why there was none. */
export class SaidError extends Error {}

async function asked<T>(address: string, init: RequestInit): Promise<T> {
  let response: Response;
  try {
    response = await fetch(address, { ...init, cache: "no-store", credentials: "omit" });
  } catch {
    throw new SaidError("The server cannot be reached; try again when there is a network.");
  }
  const body = (await response.json().catch(() => null)) as (T & { error?: string }) | null;
  if (!response.ok || body === null) throw new SaidError(body?.error ?? `The server answered ${response.status}.`);
  return body;
}

const json = (body: unknown): RequestInit =>
  ({ method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

export const readTerms = (code: string): Promise<Terms> => asked("./v1/terms", json({ code }));

/** Uses the code: from now on this phone belongs to the contributor. */
export async function enrol(code: string): Promise<Identity> {
  const random = crypto.getRandomValues(new Uint8Array(24));
  const install = btoa(String.fromCharCode(...random)).replace(/\+/g, "-").replace(/\//g, "_");
  const made = await asked<Omit<Identity, "install">>("./v1/devices", json({ code, install, ...deviceNames() }));
  return { ...made, install };
}

/** The study's policy; tables that it leaves out keep their defaults. */
export async function readPolicy(identity: Identity): Promise<Policy> {
  const headers = { Authorization: `Bearer ${identity.token}`, "Haversack-Install": identity.install };
  return { ...POLICY, ...(await asked<Partial<Policy>>("./v1/policy", { headers })) };
}
