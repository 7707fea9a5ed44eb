// The phone's side of the upload: tus of files named by their SHA-256, inside the protocol of clips (docs/collect.md).
// A clip leaves the phone's storage only after the server has answered `complete` with 200.

import { checksum } from "../media/crc32c.ts";
import type { Database } from "./db.ts";
import { type Held, type Identity, clips, remove } from "./spool.ts";

export interface Patience { firstMs: number; mostMs: number }
export const PATIENCE: Patience = { firstMs: 1000, mostMs: 300_000 };

const CHUNK = 1 << 20;
const PASSING = [408, 409, 422, 423, 425, 429, 460];

/** May pass: it is tried again. */
class AgainError extends Error {
  constructor(message: string, readonly status = 0, readonly afterMs = 0) { super(message); }
}
/** This clip is not taken. */
class ClipRefusedError extends Error {}
/** This phone is not taken any more. */
export class DeviceRefusedError extends Error {}

export interface Progress { sent: number; clip: string | null }

export class Pusher {
  private chunk = 0;
  private wake: (() => void) | null = null;

  constructor(
    private readonly db: Database,
    private readonly identity: Identity,
    private readonly heard: (progress: Progress) => void = () => {},
    private readonly patience: Patience = PATIENCE,
  ) {}

  /** Sends every clip that `ready` says may go, one after another; how many arrived. Waits for as long as it takes:
   * what interrupts it is `signal`, or the end of the page. */
  async push(ready: (clip: Held) => boolean, signal: AbortSignal): Promise<number> {
    let arrived = 0;
    for (const clip of await clips(this.db)) {
      if (signal.aborted) break;
      if (clip.refused !== null || !ready(clip)) continue;
      try {
        await this.deliver(clip, signal);
        arrived++;
      } catch (error) {
        if (!(error instanceof ClipRefusedError)) throw error;
        const now = await this.db.get<Held>("clips", clip.uuid);
        if (now !== undefined) await this.db.put("clips", clip.uuid, { ...now, refused: error.message });
      }
    }
    this.heard({ sent: 0, clip: null });
    return arrived;
  }

  /** Try at once what is being waited for: the network is back. */
  hurry(): void {
    this.wake?.();
  }

  private async deliver(clip: Held, signal: AbortSignal): Promise<void> {
    for (let round = 0; round < 3; round++) { // twice more when a file arrived damaged
      const begun = await this.again(signal, () => this.post("/v1/clips", clip.manifest));
      const { upload_id: upload, missing } = (await begun.json()) as { upload_id: string; missing: string[] };
      for (const sha256 of missing) await this.file(clip, upload, sha256, signal);
      try {
        await this.again(signal, () => this.post(`/v1/uploads/${upload}/complete`, ""), [409, 422]);
        await remove(this.db, clip.uuid);
        return;
      } catch (error) {
        if (!(error instanceof AgainError)) throw error;
      }
    }
    throw new ClipRefusedError("the files are not what the manifest says, even sent three times");
  }

  private async file(clip: Held, upload: string, sha256: string, signal: AbortSignal): Promise<void> {
    const record = clip.files.find((file) => file.sha256 === sha256);
    const data = record && (await this.db.get<Blob>("files", `${clip.uuid}/${record.name}`));
    if (record === undefined || data === undefined) throw new ClipRefusedError("a file of this clip is gone from the phone");
    const address = `/v1/uploads/${upload}/${sha256}`;
    this.chunk ||= await this.again(signal, () => this.most(address));
    let here: number | null = null;
    while (here === null || here < record.bytes) {
      const next: number = await this.again(signal, async () => {
        const begin: number = here ?? Number((await this.ask("HEAD", address)).headers.get("Upload-Offset"));
        here = null; // after a failure the server is asked where the file ends: what arrived is not sent again
        if (begin >= record.bytes) return begin;
        const bytes = new Uint8Array(await data.slice(begin, begin + this.chunk).arrayBuffer());
        const answer = await this.ask("PATCH", address, bytes, {
          "Content-Type": "application/offset+octet-stream", "Upload-Offset": String(begin), "Upload-Checksum": checksum(bytes),
        });
        this.heard({ sent: bytes.length, clip: clip.uuid });
        return Number(answer.headers.get("Upload-Offset"));
      });
      here = next;
    }
  }

  /** The most bytes of a request that this server takes. */
  private async most(address: string): Promise<number> {
    const said = Number((await this.ask("OPTIONS", address)).headers.get("Haversack-Chunk-Most"));
    return said > 0 ? Math.min(CHUNK, said) : CHUNK;
  }

  private post(address: string, body: string): Promise<Response> {
    return this.ask("POST", address, body, { "Content-Type": "application/json" });
  }

  private async ask(
    method: string, address: string, body?: BodyInit, headers: Record<string, string> = {},
  ): Promise<Response> {
    const { token, install } = this.identity;
    const own = { Authorization: `Bearer ${token}`, "Haversack-Install": install, "Tus-Resumable": "1.0.0" };
    let response: Response;
    try {
      response = await fetch(address, { method, body, headers: { ...own, ...headers }, cache: "no-store", credentials: "omit" });
    } catch (error) {
      throw new AgainError(String(error));
    }
    if (response.ok) return response;
    const unknown = { code: "http", error: `status ${response.status}` };
    const { code, error } = (await response.json().catch(() => unknown)) as typeof unknown;
    if (response.status === 401 || code === "other-device" || code === "install") throw new DeviceRefusedError(error);
    if (code !== "clip" && (PASSING.includes(response.status) || response.status >= 500))
      throw new AgainError(error, response.status, 1000 * Number(response.headers.get("Retry-After") ?? 0));
    throw new ClipRefusedError(error);
  }

  /** Until it does not fail in passing: exponential waits with full jitter; `settle` are statuses that no wait heals. */
  private async again<T>(signal: AbortSignal, ask: () => Promise<T>, settle: number[] = []): Promise<T> {
    for (let attempt = 0; ; attempt++) {
      signal.throwIfAborted();
      try {
        return await ask();
      } catch (error) {
        if (!(error instanceof AgainError) || settle.includes(error.status)) throw error;
        const jitter = Math.random() * Math.min(this.patience.mostMs, this.patience.firstMs * 2 ** Math.min(attempt, 20));
        await this.pause(Math.max(jitter, Math.min(error.afterMs, this.patience.mostMs)), signal);
      }
    }
  }

  private pause(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        this.wake = null;
        resolve();
      };
      const timer = setTimeout(end, ms);
      this.wake = end;
      signal.addEventListener("abort", end, { once: true });
    });
  }
}
