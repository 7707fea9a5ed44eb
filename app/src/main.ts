// The app: consent first, then one screen that says what the camera does.

import { type Terms, SaidError, enrol, readPolicy, readTerms } from "./api.ts";
import { type Policy, POLICY } from "./core/policy.ts";
import { Database } from "./device/db.ts";
import { type DetectorName, Recorder, type Status } from "./device/recorder.ts";
import { Awake, battery, metered } from "./device/sensors.ts";
import { type Held, type Identity, clips, erase, forgetSince } from "./device/spool.ts";
import { DeviceRefusedError, Pusher } from "./device/upload.ts";

interface Settings { detector: DetectorName; hold: number; unmetered: boolean; charging: boolean; show: boolean }
const SETTINGS: Settings = { detector: "mediapipe", hold: 10, unmetered: true, charging: false, show: false };
const LOOK_AGAIN_MS = 15_000;

const WORDS: Record<Status, [string, string]> = {
  starting: ["Getting ready", "The detector is loading."],
  watching: ["Watching", "What it sees is dropped unless hands are at work."],
  keeping: ["Keeping a clip", "Hands are at work."],
  resting: ["Resting", "You sit still or walk: it looks only now and then."],
  unworn: ["Paused", "The phone does not hang as it did when you began."],
  battery: ["Paused", "The battery is too low."],
  blocked: ["Paused", "Nothing is watched at this time of the day."],
};

const by = <T extends HTMLElement = HTMLElement>(id: string): T => document.getElementById(id) as T;
const write = (id: string, text: string): void => { by(id).textContent = text; };
const host = location.host;

function page(name: "welcome" | "consent" | "refused" | "home" | "more"): void {
  for (const section of document.querySelectorAll<HTMLElement>("main > section")) section.hidden = section.id !== name;
  scrollTo(0, 0);
}

class App {
  private settings = SETTINGS;
  private policy: Policy = POLICY;
  private recorder: Recorder | null = null;
  private pusher: Pusher | null = null;
  private readonly awake = new Awake();
  private stopPushing = new AbortController();
  private shown = "";

  constructor(private readonly db: Database, private readonly identity: Identity) {}

  async begin(): Promise<void> {
    this.settings = { ...SETTINGS, ...(await this.db.get<Settings>("kv", "settings")) };
    this.policy = (await this.db.get<Policy>("kv", "policy")) ?? POLICY;
    void this.refresh();
    const { contributor_pseudonym: name, policy_version: version, retention_days: days } = this.identity.consent;
    write("who", `${name} · ${host}`);
    write("leave-name", name);
    write("agreed", `Version ${version} of the terms of ${host}, as ${name}. Clips are kept there for at most ${days} days. ` +
      `This phone is ${this.identity.device}.`);
    this.wire();
    page("home");
    await this.count();
    addEventListener("online", () => { this.pusher?.hurry(); void this.push(); });
    setInterval(() => void this.push(), LOOK_AGAIN_MS);
    void this.push();
  }

  private async refresh(): Promise<void> {
    try {
      this.policy = await readPolicy(this.identity);
      await this.db.put("kv", "policy", this.policy);
    } catch (error) {
      if (!(error instanceof SaidError)) throw error; // without a network the policy of last time holds
    }
    await this.keepParts();
  }

  /** What watching needs stays on the phone from now on, network or not. */
  private async keepParts(): Promise<void> {
    if (!("serviceWorker" in navigator) || !isSecureContext) return;
    const keep = this.settings.detector === "hands" ? ["ort/", "assets/ort.", "models/"] : ["mediapipe/hands/"];
    if (this.policy.privacy.blur_hz > 0) keep.push("mediapipe/face_detection/");
    (await navigator.serviceWorker.ready).active?.postMessage({ keep });
  }

  private wire(): void {
    by("go").onclick = () => void (this.recorder === null ? this.start() : this.stop());
    const dialog = by<HTMLDialogElement>("forgetting");
    by("forget").onclick = () => dialog.showModal();
    for (const button of dialog.querySelectorAll("button")) button.onclick = () => dialog.close(button.value);
    dialog.onclose = () => { if (Number(dialog.returnValue) > 0) void this.forget(Number(dialog.returnValue)); };
    by("open-more").onclick = () => { void this.list(); by("open-more").ariaExpanded = "true"; page("more"); };
    by("close-more").onclick = () => { by("open-more").ariaExpanded = "false"; page("home"); };
    by("leave").onclick = () => void this.leave();
    for (const name of ["detector", "hold"] as const) {
      const select = by<HTMLSelectElement>(name);
      select.value = String(this.settings[name]);
      select.onchange = () => void this.set({ [name]: name === "hold" ? Number(select.value) : select.value });
    }
    for (const name of ["unmetered", "charging", "show"] as const) {
      const tick = by<HTMLInputElement>(name);
      tick.checked = this.settings[name];
      tick.onchange = () => void this.set({ [name]: tick.checked });
    }
  }

  private async set(change: Partial<Settings>): Promise<void> {
    this.settings = { ...this.settings, ...change };
    await this.db.put("kv", "settings", this.settings);
    if ("detector" in change) void this.keepParts();
    this.preview();
    void this.push();
  }

  // ---- watching

  private async start(): Promise<void> {
    const go = by<HTMLButtonElement>("go");
    go.disabled = true;
    write("said", "");
    try {
      this.recorder = await Recorder.start(this.db, this.identity, this.policy, this.settings.detector, {
        status: (status, a) => this.status(status, a),
        kept: () => void this.count().then(() => this.push()),
        ended: (why) => this.ended(why),
      });
      await this.awake.hold();
      go.textContent = "Stop";
      go.classList.add("on");
      this.preview();
    } catch (error) {
      this.ended(explained(error));
    } finally {
      go.disabled = false;
    }
  }

  private async stop(): Promise<void> {
    by<HTMLButtonElement>("go").disabled = true;
    await this.recorder?.stop();
    by<HTMLButtonElement>("go").disabled = false;
  }

  private ended(why: string | null): void {
    this.recorder = null;
    void this.awake.release();
    by("go").textContent = "Start watching";
    by("go").classList.remove("on");
    this.shown = "";
    by("eye").dataset.state = "off";
    by("eye").style.setProperty("--a", "0");
    write("state", "Not watching");
    write("detail", "Nothing is recorded.");
    write("said", why ?? "");
    this.preview();
    void this.count();
  }

  private status(status: Status, a: number): void {
    by("eye").style.setProperty("--a", a.toFixed(2));
    if (status === this.shown) return;
    this.shown = status;
    by("eye").dataset.state = status === "keeping" ? "keeping" : status === "watching" ? "on" : "off";
    write("state", WORDS[status][0]);
    write("detail", WORDS[status][1]);
  }

  private preview(): void {
    const video = by<HTMLVideoElement>("preview");
    const stream = this.settings.show && this.recorder !== null ? this.recorder.camera.stream : null;
    video.hidden = stream === null;
    if (video.srcObject !== stream) video.srcObject = stream;
    if (stream !== null) void video.play();
  }

  private async forget(minutes: number): Promise<void> {
    const since = Date.now() - minutes * 60_000;
    const gone = this.recorder !== null ? await this.recorder.forget(minutes) : await forgetSince(this.db, since);
    write("said", `Forgotten: what was seen, and ${gone} ${gone === 1 ? "clip" : "clips"}.`);
    await this.count();
  }

  // ---- the spool

  private async count(): Promise<Held[]> {
    const held = await clips(this.db);
    const mib = held.reduce((sum, clip) => sum + clip.bytes, 0) / 2 ** 20;
    const today = (await this.db.get<{ day: number }[]>("kv", "day")) ?? [];
    write("kept", String(today.filter(({ day }) => day === Math.floor(Date.now() / 86_400_000)).length));
    write("waiting", held.length === 0 ? "0" : `${held.length} · ${mib < 10 ? mib.toFixed(1) : Math.round(mib)} MiB`);
    write("sent", String((await this.db.get<number>("kv", "sent")) ?? 0));
    return held;
  }

  private async list(): Promise<void> {
    const items = (await this.count()).map((clip) => {
      const [item, text, button] = (["li", "span", "button"] as const).map((name) => document.createElement(name));
      const when = new Date(clip.begin).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      text.textContent = `${when} · ${clip.seconds.toFixed(0)} s${clip.refused === null ? "" : ` · refused: ${clip.refused}`}`;
      button.textContent = "Erase";
      button.ariaLabel = `Erase the clip of ${when}`;
      button.onclick = () => void erase(this.db, [clip.uuid]).then(() => this.list());
      item.append(text, button);
      return item;
    });
    if (items.length === 0) {
      const none = document.createElement("li");
      none.textContent = "none";
      items.push(none);
    }
    by("clips").replaceChildren(...items);
  }

  /** Sends what may go now; one page at a time does so. */
  private async push(): Promise<void> {
    if (this.pusher !== null || !navigator.onLine || (this.settings.unmetered && metered())) return;
    if (this.settings.charging && !(await battery()).charging) return;
    const ready = ({ end }: Held): boolean => Date.now() >= end + this.settings.hold * 60_000;
    if (this.pusher !== null || !(await clips(this.db)).some((clip) => clip.refused === null && ready(clip))) return;
    await navigator.locks.request("haversack-push", { ifAvailable: true }, async (lock) => {
      if (lock === null || this.pusher !== null) return;
      this.pusher = new Pusher(this.db, this.identity);
      try {
        const arrived = await this.pusher.push(ready, this.stopPushing.signal);
        if (arrived > 0) await this.db.put("kv", "sent", ((await this.db.get<number>("kv", "sent")) ?? 0) + arrived);
      } catch (error) {
        if (error instanceof DeviceRefusedError) {
          write("said", `The server does not take this phone any more: ${error.message}`);
          await this.recorder?.stop();
        } else if (!this.stopPushing.signal.aborted) throw error;
      } finally {
        this.pusher = null;
        await this.count();
      }
    });
  }

  private async leave(): Promise<void> {
    if (!confirm("Erase every clip and key from this phone?")) return;
    this.stopPushing.abort();
    await this.recorder?.stop();
    await this.db.wipe();
    location.replace("./");
  }
}

/** What the browser means, in words. */
function explained(error: unknown): string {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError")
    return "The camera was not allowed; nothing is recorded. Allow it in the browser’s settings to take part.";
  if (name === "NotFoundError" || name === "OverconstrainedError") return "This device has no camera that can be used.";
  return error instanceof Error ? error.message : String(error);
}

async function consent(db: Database, code: string): Promise<void> {
  let terms: Terms;
  try {
    terms = await readTerms(code);
  } catch (error) {
    write("code-said", error instanceof Error ? error.message : String(error));
    page("welcome");
    return;
  }
  write("consent-host", host);
  write("consent-name", terms.contributor);
  write("consent-days", String(terms.retention_days));
  write("consent-version", terms.policy_version);
  const faces = by("consent-faces"), strong = document.createElement("b");
  strong.textContent = terms.faces_blurred ? "Faces that it finds are blurred" : "Faces are not blurred";
  faces.replaceChildren(strong, terms.faces_blurred ? " before a clip is stored; it may miss some." : " in this study.");
  by("consent-text").hidden = terms.text === null;
  (document.querySelector("#consent-text .text") as HTMLElement).textContent = terms.text ?? "";
  const read = by<HTMLInputElement>("consent-read"), agree = by<HTMLButtonElement>("agree");
  read.checked = false;
  agree.disabled = true;
  read.onchange = () => { agree.disabled = !read.checked; };
  by("refuse").onclick = () => page("refused");
  by("again").onclick = () => page("consent");
  agree.onclick = async () => {
    agree.disabled = true;
    try {
      const identity = await enrol(code);
      await db.put("kv", "identity", identity);
      await navigator.storage?.persist?.();
      await new App(db, identity).begin();
    } catch (error) {
      write("consent-said", error instanceof Error ? error.message : String(error));
      agree.disabled = !read.checked;
    }
  };
  page("consent");
}

async function main(): Promise<void> {
  if ("serviceWorker" in navigator && isSecureContext) void navigator.serviceWorker.register("./sw.js");
  const code = /[#&]enrol=([A-Za-z0-9_-]+)/.exec(location.hash)?.[1];
  history.replaceState(null, "", location.pathname);
  const db = await Database.open();
  const identity = await db.get<Identity>("kv", "identity");
  if (identity !== undefined) {
    await new App(db, identity).begin();
    if (code !== undefined) write("said", "This phone takes part already. To use another code, leave first (⋯).");
    return;
  }
  by("code-form").onsubmit = (event) => {
    event.preventDefault();
    write("code-said", "");
    void consent(db, by<HTMLInputElement>("code").value.trim().replace(/^.*#enrol=/, ""));
  };
  if (code !== undefined) await consent(db, code);
  else page("welcome");
}

void main();
