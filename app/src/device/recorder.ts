// One run of watching: camera, sensors and plug-ins wired to the agent, its clips into the spool.

import { type Clip, EdgeAgent } from "../core/agent.ts";
import { type Detector, OwnDetector } from "../core/detector.ts";
import { type Policy, blocked } from "../core/policy.ts";
import { type Camera, openCamera } from "./camera.ts";
import type { Database } from "./db.ts";
import { mediapipeFaces, mediapipeHands } from "./mediapipe.ts";
import { networkOf, type Runtime } from "./network.ts";
import { VideoRing } from "./ring.ts";
import { allowMotion, battery, watchMotion } from "./sensors.ts";
import { type Identity, forgetSince, write } from "./spool.ts";
import { Blurring } from "./stored.ts";

export type DetectorName = "mediapipe" | "hands";

export type Status = "starting" | "watching" | "keeping" | "resting" | "unworn" | "battery" | "blocked";

export interface Heard { status(status: Status, a: number): void; kept(): void; ended(why: string | null): void }

/** The plug-in of that name. */
export async function detectorOf(name: DetectorName): Promise<Detector> {
  if (name === "mediapipe") return mediapipeHands();
  const [ort, model, wasm] = await Promise.all([
    import("onnxruntime-web/wasm"), loaded("./models/hands.onnx"), loaded("./ort/ort-wasm-simd-threaded.wasm"),
  ]);
  const runtime = ort as unknown as Runtime;
  runtime.env.wasm.wasmPaths = new URL("./ort/", document.baseURI).href;
  runtime.env.wasm.wasmBinary = wasm;
  return new OwnDetector(await networkOf(runtime, new Uint8Array(model)));
}

/** A part of the app, tried three times: what the service worker keeps can fail to be read while it keeps more. */
async function loaded(address: string): Promise<ArrayBuffer> {
  for (let attempt = 1; ; attempt++) {
    try {
      const response = await fetch(address);
      if (!response.ok) throw new Error(`the server answered ${response.status}`);
      return await response.arrayBuffer();
    } catch (error) {
      if (attempt === 3) throw new Error(`${address} could not be loaded (${String(error)})`);
      await new Promise((resolve) => setTimeout(resolve, 500 * attempt));
    }
  }
}

export class Recorder {
  private stopping = false;
  private writing: Promise<void> = Promise.resolve();
  private readonly running: Promise<void>;
  private readonly stopMotion: () => void;
  private ticked = -Infinity;

  private constructor(
    readonly camera: Camera,
    private readonly db: Database,
    private readonly agent: EdgeAgent,
    private readonly ring: VideoRing,
    private readonly heard: Heard,
  ) {
    this.stopMotion = watchMotion((t, sample) => agent.pushImu(t, sample));
    this.running = this.run();
  }

  /** Begins to watch. Throws with a sentence when camera, detector or blur are not to be had: nothing is recorded then. */
  static async start(db: Database, identity: Identity, policy: Policy, name: DetectorName, heard: Heard): Promise<Recorder> {
    heard.status("starting", 0);
    await allowMotion();
    const blurs = policy.privacy.blur_hz > 0;
    const [detector, faces] = await Promise.all([detectorOf(name), blurs ? mediapipeFaces() : null]);
    const camera = await openCamera();
    try {
      const blurring = faces === null ? null : new Blurring(faces, policy.privacy.blur_hz);
      await VideoRing.clear(db);
      const ring = new VideoRing(db, camera.fps, blurring?.stored ?? (async (frame) => frame.video()));
      const session = `s${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}`;
      const about = { identity, session, fps: camera.fps, lens: "rear", policy, blurred: blurs };
      const made: { recorder?: Recorder } = {};
      const agent: EdgeAgent = new EdgeAgent(camera.fps, detector, ring, (clip: Clip) => {
        if (made.recorder === undefined) throw new Error("a clip before the run began");
        return made.recorder.keep(clip, about);
      }, policy);
      return (made.recorder = new Recorder(camera, db, agent, ring, heard));
    } catch (error) {
      camera.close();
      throw error;
    }
  }

  private async keep(clip: Clip, about: Parameters<typeof write>[1]): Promise<void> {
    await this.ring.flush();
    const cut = this.ring.read(clip.span.begin, clip.span.end);
    this.writing = this.writing.then(async () => {
      const found = await cut;
      if (found === null || found.chunks.length === 0) return;
      if ((await write(this.db, about, clip, found, (t) => this.agent.wallMs(t))) !== null) this.heard.kept();
    });
    this.writing.catch(() => this.camera.close());
  }

  private async run(): Promise<void> {
    let why: string | null = null;
    try {
      for await (const frame of this.camera.frames()) {
        if (this.stopping) break;
        if (frame.t - this.ticked >= 1e9) await this.tick(frame.t);
        await this.agent.pushFrame(frame);
        this.heard.status(this.status(frame.t), this.agent.trigger.a);
      }
      if (!this.stopping) why = "the camera stopped";
      await this.agent.finish();
    } catch (error) {
      why = error instanceof Error ? error.message : String(error);
    }
    this.stopMotion();
    this.camera.close();
    await this.writing.catch((error) => { why ??= `a clip could not be stored (${String(error)})`; });
    await this.ring.close().catch(() => undefined);
    this.heard.ended(why);
  }

  private async tick(t: number): Promise<void> {
    this.ticked = t;
    const { percent, charging } = await battery();
    this.agent.tick(performance.timeOrigin + t / 1e6, t, charging ? 100 : percent);
  }

  private status(t: number): Status {
    if (this.agent.stopped) return "battery";
    if (blocked(this.agent.policy, this.agent.wallMs(t))) return "blocked";
    if (this.agent.state === "unworn") return "unworn";
    if (this.agent.trigger.running) return "keeping";
    return this.agent.state === "active" ? "watching" : "resting";
  }

  /** Erases what was seen in the last minutes and every clip that reaches into them; how many clips. */
  async forget(minutes: number): Promise<number> {
    const since = this.agent.forgetLast(minutes);
    await this.writing.catch(() => undefined);
    return since === null ? 0 : forgetSince(this.db, this.agent.wallMs(since));
  }

  /** Ends when the last clip is stored. */
  async stop(): Promise<void> {
    this.stopping = true;
    this.camera.close();
    await this.running;
  }
}
