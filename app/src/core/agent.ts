// The edge agent: from frames and motion samples to clips to keep, step by step as collect/agent.py. Same input, same
// clips; tests play one stream to both.

import { type Detector } from "./detector.ts";
import { ImuGate, type Sample, type State } from "./imu.ts";
import { type Blocks, type Picture, inCamera, mean, residual, sharpness, shrink } from "./motion.ts";
import { type Policy, POLICY, blocked } from "./policy.ts";
import { type Matrix, integrated } from "./rotations.ts";
import { type Hand, SECOND, type Span, Trigger, evidence } from "./trigger.ts";

const ON_PX = 0.25, STAYS_ON = 2 * SECOND, EARLY = 0.25;
const THUMBNAILS = 500;

/** One frame of the camera: its time (ns), and its pixels when somebody wants them. */
export interface Frame { t: number; picture(): Picture; source?: CanvasImageSource }

/** Encoded video on the device, the oldest dropped. */
export interface Ring {
  push(frame: Frame): Promise<void>;
  dropBefore(t: number): void;
  dropAll(): void;
}

export interface Look { t: number; a: number; sharpness: number; residual: number; hands: Hand[]; small: Float32Array }
export interface Clip { span: Span; looks: Look[]; imu: { t: number; sample: Sample }[]; value: number }

/** Writes a clip that was cut; false where nothing of it is in the ring. */
export type Keep = (clip: Clip) => Promise<void>;

export interface Account { frames: number; encoded: number; looks: number; detections: number }

export class EdgeAgent {
  readonly account: Account = { frames: 0, encoded: 0, looks: 0, detections: 0 };
  trigger: Trigger;
  stopped = false;
  saving = false;
  lookAt: Look | null = null;
  private readonly gate: ImuGate;
  private readonly seen: Float32Array[] = [];
  private imu: { t: number; sample: Sample }[] = [];
  private looks: Look[] = [];
  private before: { t: number; grey: Float32Array } | null = null;
  private lastLook: number | null = null;
  private lastFrame: number | null = null;
  private onUntil = -Infinity;
  private wallOffsetMs = 0;

  constructor(
    readonly fps: number,
    private readonly detector: Detector,
    private readonly ring: Ring,
    private readonly keep: Keep,
    readonly policy: Policy = POLICY,
    private readonly cameraFromBody?: Matrix,
  ) {
    this.trigger = new Trigger(policy.trigger);
    this.gate = new ImuGate(policy.imu);
  }

  get state(): State {
    return this.imu.length > 0 ? this.gate.state : "active";
  }

  pushImu(t: number, sample: Sample): void {
    if (this.imu.length > 0 && t <= this.imu[this.imu.length - 1].t) return;
    this.imu.push({ t, sample });
    this.gate.push(t, sample);
    const keep = Math.min(t - 10 * SECOND, this.trigger.needsFrom ?? t) - 2 * SECOND;
    let gone = 0;
    while (this.imu[gone].t < keep) gone++;
    if (gone > 0) this.imu.splice(0, gone);
  }

  /** The state of the device: wall clock (ms) at a time (ns), battery in percent. */
  tick(wallMs: number, t: number, battery = 100): void {
    this.wallOffsetMs = wallMs - t / 1e6;
    this.stopped = battery < this.policy.savings.empty_battery;
    this.saving = battery < this.policy.savings.low_battery;
  }

  wallMs(t: number): number {
    return t / 1e6 + this.wallOffsetMs;
  }

  async pushFrame(frame: Frame): Promise<void> {
    const t = frame.t;
    this.account.frames++;
    if (this.lastFrame !== null && t <= this.lastFrame) return;
    const gap = t - (this.lastFrame ?? t);
    this.lastFrame = t;
    const state = this.state;
    if (gap > (3 * SECOND) / this.fps) await this.end(); // the camera paused: a clip does not reach across
    if (this.stopped || state === "unworn" || blocked(this.policy, this.wallMs(t))) return this.end();
    const hz = this.rate(state, t);
    const looks = this.due(t, hz);
    const probing = (state === "rest" || state === "walk") && t >= this.onUntil && !this.trigger.open;
    if (probing) this.ring.dropAll(); // the camera is off but for two pictures a look
    else {
      await this.ring.push(frame);
      this.account.encoded++;
    }
    if (looks) {
      const spans = await this.look(frame, this.before);
      this.before = null;
      await this.keepAll(spans);
    } else if (this.lastLook !== null && this.due(t + (1.25 * SECOND) / this.fps, hz))
      this.before = { t, grey: shrink(frame.picture()) };
    const needed = this.trigger.needsFrom;
    if (needed !== null) {
      this.ring.dropBefore(needed);
      this.looks = this.looks.filter((look) => look.t >= needed);
    }
  }

  /** The stream is over. */
  async finish(): Promise<void> {
    await this.end();
  }

  /** Forget what the ring and the trigger hold; the time (ns) from which on clips are to be removed. */
  forgetLast(minutes: number): number | null {
    if (this.lastFrame === null) return null;
    const since = this.lastFrame - Math.round(minutes * 60 * SECOND);
    this.reset();
    this.imu = [];
    return since;
  }

  private rate(state: State, t: number): number {
    const rates = this.policy.rates;
    if (t < this.onUntil || this.trigger.open) return this.saving ? rates.saving_hz : rates.detect_hz;
    return state === "rest" ? rates.rest_hz : state === "walk" ? rates.walk_hz : rates.active_hz;
  }

  /** Whether a look is due; a quarter of a frame early counts, since cameras do not tick evenly. */
  private due(t: number, hz: number): boolean {
    return this.lastLook === null || t - this.lastLook >= SECOND / hz - (EARLY * SECOND) / this.fps;
  }

  private async look(frame: Frame, before: { t: number; grey: Float32Array } | null): Promise<Span[]> {
    const t = frame.t, limits = this.policy.motion;
    this.lastLook = t;
    this.account.looks++;
    const picture = frame.picture(), grey = shrink(picture), sharp = sharpness(grey), light = mean(grey);
    let hands: Hand[] = [], motion = 0, blocks: Blocks;
    if (sharp >= limits.sharp && limits.dark <= light && light <= limits.bright && before !== null) {
      [motion, blocks] = residual(before.grey, grey, (t - before.t) / SECOND, limits, this.turn(before.t, t));
      if (motion >= ON_PX || t < this.onUntil) {
        this.account.detections++;
        hands = await this.detector.detect(picture, blocks, frame.source);
      }
      if (motion >= ON_PX && hands.length > 0) this.onUntil = t + STAYS_ON;
    }
    const spans = this.trigger.step(t, evidence(hands, motion, this.policy.trigger.m0_px));
    this.lookAt = { t, a: this.trigger.a, sharpness: sharp, residual: motion, hands, small: thumbnail(grey) };
    this.looks.push(this.lookAt);
    return spans;
  }

  /** The camera's rotation between two times; null without motion samples. */
  private turn(begin: number, end: number): Matrix | null {
    const imu = this.imu;
    if (imu.length === 0 || imu[imu.length - 1].t < begin) return null;
    let first = imu.length - 1;
    while (first > 0 && imu[first].t > begin) first--;
    const samples = imu.slice(first).map(({ t, sample }) => ({ t, gyro: sample.slice(3) }));
    return inCamera(integrated(samples, begin, end), this.cameraFromBody);
  }

  private async end(): Promise<void> {
    await this.keepAll(this.trigger.end());
    this.reset();
  }

  private reset(): void {
    this.trigger = new Trigger(this.policy.trigger);
    this.ring.dropAll();
    this.looks = [];
    this.before = null;
  }

  private async keepAll(spans: Span[]): Promise<void> {
    for (const span of spans) {
      const looks = this.looks.filter((look) => look.t >= span.begin - SECOND && look.t <= span.end + SECOND);
      const imu = this.imu.filter(({ t }) => t >= span.begin - 2 * SECOND && t <= span.end + 2 * SECOND);
      const middle = looks[Math.floor(looks.length / 2)];
      await this.keep({ span, looks, imu, value: span.mean * (middle ? this.novelty(middle.small) : 1) });
    }
  }

  /** 1 minus the largest cosine to what was seen; it is seen from now on. */
  private novelty(small: Float32Array): number {
    const closest = this.seen.reduce((most, other) => Math.max(most, small.reduce((sum, v, at) => sum + v * other[at], 0)), 0);
    this.seen.push(small);
    if (this.seen.length > THUMBNAILS) this.seen.shift();
    return Math.min(1, Math.max(0, 1 - closest));
  }
}

/** A unit vector [64] of an 8 x 8 shrinking of a 160 x 90 picture with its mean taken away. */
export function thumbnail(grey: Float32Array): Float32Array {
  const small = new Float32Array(64);
  for (let y = 0; y < 8; y++)
    for (let x = 0; x < 8; x++) {
      const top = y < 2 ? y * 12 : 24 + (y - 2) * 11, bottom = top + (y < 2 ? 12 : 11); // 90 rows in eight parts
      let sum = 0;
      for (let row = top; row < bottom; row++)
        for (let column = 20 * x; column < 20 * x + 20; column++) sum += grey[row * 160 + column];
      small[8 * y + x] = sum / ((bottom - top) * 20);
    }
  const middle = mean(small);
  const length = Math.hypot(...small.map((value) => value - middle));
  return small.map((value) => (length > 1e-6 ? (value - middle) / length : value - middle));
}
