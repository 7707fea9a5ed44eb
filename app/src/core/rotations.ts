// Rotations as rows [9]: exponential, products, and a gyroscope integrated between two times (collect/_rotations.py).

export type Matrix = readonly number[];
export const IDENTITY: Matrix = [1, 0, 0, 0, 1, 0, 0, 0, 1];

export function times(a: Matrix, b: Matrix): number[] {
  const out = new Array<number>(9).fill(0);
  for (let i = 0; i < 3; i++)
    for (let j = 0; j < 3; j++)
      out[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
  return out;
}

export const transposed = (a: Matrix): number[] => [a[0], a[3], a[6], a[1], a[4], a[7], a[2], a[5], a[8]];

/** The rotation about w by |w| radians. */
export function exp(w: readonly number[]): number[] {
  const t = Math.hypot(w[0], w[1], w[2]);
  const a = t < 1e-6 ? 1 - (t * t) / 6 : Math.sin(t) / t;
  const b = t < 1e-6 ? 0.5 - (t * t) / 24 : (1 - Math.cos(t)) / (t * t);
  const K = [0, -w[2], w[1], w[2], 0, -w[0], -w[1], w[0], 0];
  const KK = times(K, K);
  return IDENTITY.map((value, at) => value + a * K[at] + b * KK[at]);
}

/** The body's rotation from `begin` to `end` (ns); each sample (t, rad/s) is held until the next. */
export function integrated(samples: readonly { t: number; gyro: readonly number[] }[], begin: number, end: number): Matrix {
  let R: Matrix = IDENTITY;
  if (samples.length === 0 || end <= begin) return R;
  let first = 0, last = 0;
  while (first + 1 < samples.length && samples[first + 1].t <= begin) first++;
  while (last < samples.length && samples[last].t < end) last++;
  for (let at = first; at < Math.max(last, first + 1); at++) {
    const from = at > first ? Math.max(samples[at].t, begin) : begin;
    const to = at + 1 < samples.length ? Math.min(samples[at + 1].t, end) : end;
    const dt = Math.max(0, to - from) / 1e9;
    R = times(R, exp(samples[at].gyro.map((rate) => rate * dt)));
  }
  return R;
}
