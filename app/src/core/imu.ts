// The first gate: from the motion sensors alone, whether it is worth looking at all (collect/imu_gate.py).

import { mean, median } from "./motion.ts";
import { SECOND } from "./trigger.ts";

export type State = "rest" | "walk" | "active" | "unworn";

export interface ImuLimits {
  rest_rad_s: number; rest_s: number;
  gait_hz: [number, number]; gait_over_median: number; gait_m_s2: number;
  worn_deg: number; window_s: number; gait_window_s: number; hop_s: number; calibrate_s: number;
}

export const IMU: ImuLimits = {
  rest_rad_s: 0.02, rest_s: 30, gait_hz: [1.5, 2.5], gait_over_median: 4, gait_m_s2: 0.3,
  worn_deg: 35, window_s: 1, gait_window_s: 4, hop_s: 0.5, calibrate_s: 10,
};

/** ax ay az in m/s^2 with gravity, gx gy gz in rad/s. */
export type Sample = readonly [number, number, number, number, number, number];

/** Amplitude of the strongest oscillation in the gait's band, and its power over the median of 0.5 to 10 Hz. */
export function gait(times: readonly number[], magnitude: readonly number[], limits: ImuLimits): [number, number] {
  const count = magnitude.length;
  const seconds = (times[count - 1] - times[0]) / SECOND;
  if (seconds < 2 || count < 16) return [0, 0];
  const middle = mean(magnitude);
  let weight = 0;
  const shaped = magnitude.map((value, at) => {
    const window = 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / (count - 1));
    weight += window;
    return (value - middle) * window;
  });
  const step = (count - 1) / seconds / count; // Hz between lines of the spectrum
  const band: number[] = [], inside: number[] = [];
  for (let line = Math.ceil(0.5 / step - 1e-9); line * step <= 10 && line <= count / 2; line++) {
    let re = 0, im = 0;
    const turn = (-2 * Math.PI * line) / count;
    for (let at = 0; at < count; at++) {
      re += shaped[at] * Math.cos(turn * at);
      im += shaped[at] * Math.sin(turn * at);
    }
    const power = re * re + im * im;
    band.push(power);
    if (line * step >= limits.gait_hz[0] && line * step <= limits.gait_hz[1]) inside.push(power);
  }
  if (inside.length === 0 || band.length === 0) return [0, 0];
  const peak = Math.max(...inside);
  return [(2 * Math.sqrt(peak)) / weight, peak / Math.max(median(band), 1e-12)];
}

/** Takes samples in order; `state` is that of the last whole hop. */
export class ImuGate {
  state: State = "active";
  private times: number[] = [];
  private samples: Sample[] = [];
  private hop: number | null = null;
  private begun: number | null = null;
  private stillSince: number | null = null;
  private gravities: number[][] = [];

  constructor(readonly limits: ImuLimits = IMU, private mount: number[] | null = null) {}

  push(t: number, sample: Sample): State {
    const limits = this.limits;
    this.begun ??= t;
    this.hop ??= t + Math.round(limits.window_s * SECOND);
    this.times.push(t);
    this.samples.push(sample);
    let gone = 0;
    while (this.times[gone] < t - Math.round(limits.gait_window_s * SECOND)) gone++;
    if (gone > 0) {
      this.times.splice(0, gone);
      this.samples.splice(0, gone);
    }
    if (t >= this.hop) {
      this.hop += Math.round(limits.hop_s * SECOND);
      this.judge(t);
    }
    return this.state;
  }

  private judge(t: number): void {
    const limits = this.limits;
    const last = this.samples.filter((_, at) => this.times[at] > t - Math.round(limits.window_s * SECOND));
    const gravity = unit([0, 1, 2].map((axis) => mean(last.map((sample) => sample[axis]))));
    const gyro = Math.sqrt(mean(last.map(([, , , x, y, z]) => x * x + y * y + z * z)));
    const magnitude = this.samples.map(([x, y, z]) => Math.hypot(x, y, z));
    const [amplitude, over] = gait(this.times, magnitude, limits);
    if (this.mount === null) {
      this.gravities.push(gravity);
      if (t - (this.begun ?? t) >= Math.round(limits.calibrate_s * SECOND))
        this.mount = unit([0, 1, 2].map((axis) => median(this.gravities.map((one) => one[axis]))));
    }
    this.stillSince = gyro < limits.rest_rad_s ? (this.stillSince ?? t) : null;
    if (this.mount !== null && angleDeg(gravity, this.mount) > limits.worn_deg) this.state = "unworn";
    else if (this.stillSince !== null && t - this.stillSince >= Math.round(limits.rest_s * SECOND)) this.state = "rest";
    else if (over > limits.gait_over_median && amplitude > limits.gait_m_s2) this.state = "walk";
    else this.state = "active";
  }
}

function unit(vector: number[]): number[] {
  const length = Math.hypot(...vector);
  return length > 1e-9 ? vector.map((value) => value / length) : [0, 0, 0];
}

function angleDeg(one: readonly number[], other: readonly number[]): number {
  const dot = one.reduce((sum, value, at) => sum + value * other[at], 0);
  const lengths = Math.max(Math.hypot(...one) * Math.hypot(...other), 1e-12);
  return (Math.acos(Math.min(1, Math.max(-1, dot / lengths))) * 180) / Math.PI;
}
