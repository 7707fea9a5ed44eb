// The second gate: is the picture sharp and lit, and does something near move by itself (collect/motion_gate.py).

import { IDENTITY, type Matrix, times } from "./rotations.ts";

export const WIDTH = 160, HEIGHT = 90;
const BLOCK = 16, REACH = 6, SIZE = 2 * REACH + 1;
const FOCAL_GUESS = 0.85;

export interface MotionLimits { sharp: number; dark: number; bright: number; texture: number; unique: number }
export const MOTION: MotionLimits = { sharp: 40, dark: 25, bright: 230, texture: 25, unique: 1.1 };

/** A picture: RGBA or RGB bytes, row by row. */
export interface Picture { width: number; height: number; channels: 3 | 4; data: Uint8Array | Uint8ClampedArray }

/** Centres and motion (px at 160 x 90) of the blocks that could be matched: x, y in turns. */
export interface Blocks { centres: number[]; motion: number[] }

/** Grey [90 x 160] of a picture: means of the pixels that fall together. */
export function shrink(picture: Picture): Float32Array {
  const { width, height, channels, data } = picture;
  const out = new Float32Array(WIDTH * HEIGHT);
  const grey = (y: number, x: number): number => {
    const at = (y * width + x) * channels;
    return 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
  };
  const edge = (at: number, parts: number, size: number): number => Math.floor((at * size) / parts);
  if (height < HEIGHT || width < WIDTH) {
    for (let y = 0; y < HEIGHT; y++)
      for (let x = 0; x < WIDTH; x++) out[y * WIDTH + x] = grey(edge(y, HEIGHT, height), edge(x, WIDTH, width));
    return out;
  }
  for (let y = 0; y < HEIGHT; y++) {
    const top = edge(y, HEIGHT, height), bottom = edge(y + 1, HEIGHT, height);
    for (let x = 0; x < WIDTH; x++) {
      const left = edge(x, WIDTH, width), right = edge(x + 1, WIDTH, width);
      let sum = 0;
      for (let row = top; row < bottom; row++) for (let column = left; column < right; column++) sum += grey(row, column);
      out[y * WIDTH + x] = sum / ((bottom - top) * (right - left));
    }
  }
  return out;
}

export const mean = (values: ArrayLike<number>): number => {
  let sum = 0;
  for (let at = 0; at < values.length; at++) sum += values[at];
  return sum / Math.max(1, values.length);
};

/** Variance of the Laplacian (4 neighbours). */
export function sharpness(grey: Float32Array): number {
  let sum = 0, squares = 0;
  const count = (WIDTH - 2) * (HEIGHT - 2);
  for (let y = 1; y < HEIGHT - 1; y++)
    for (let x = 1; x < WIDTH - 1; x++) {
      const at = y * WIDTH + x;
      const value = grey[at - WIDTH] + grey[at + WIDTH] + grey[at - 1] + grey[at + 1] - 4 * grey[at];
      sum += value;
      squares += value * value;
    }
  return squares / count - (sum / count) ** 2;
}

/** Where the 16 x 16 blocks of `before` are in `after`: least sum of absolute differences within 6 px, refined by a
 * parabola; blocks without texture, or with a second best as good, are left out. */
export function matchBlocks(before: Float32Array, after: Float32Array, limits: MotionLimits): Blocks {
  const rows = Math.floor((HEIGHT - 2 * REACH) / BLOCK), columns = Math.floor((WIDTH - 2 * REACH) / BLOCK);
  const top = HEIGHT - REACH - rows * BLOCK, left = Math.floor((WIDTH - columns * BLOCK) / 2);
  const found: Blocks = { centres: [], motion: [] };
  const costs = new Float32Array(SIZE * SIZE);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const y0 = top + row * BLOCK, x0 = left + column * BLOCK;
      if (textureOf(before, y0, x0) < limits.texture) continue;
      let best = 0;
      for (let dy = -REACH; dy <= REACH; dy++)
        for (let dx = -REACH; dx <= REACH; dx++) {
          let sum = 0;
          for (let y = 0; y < BLOCK; y++) {
            let here = (y0 + y) * WIDTH + x0, there = (y0 + y + dy) * WIDTH + x0 + dx;
            for (let x = 0; x < BLOCK; x++) sum += Math.abs(after[there++] - before[here++]);
          }
          const at = (dy + REACH) * SIZE + dx + REACH;
          costs[at] = sum;
          if (costs[at] < costs[best]) best = at;
        }
      const y = Math.floor(best / SIZE), x = best % SIZE;
      let second = Infinity;
      for (let at = 0; at < costs.length; at++)
        if (Math.abs(Math.floor(at / SIZE) - y) > 1 || Math.abs((at % SIZE) - x) > 1) second = Math.min(second, costs[at]);
      if (second <= limits.unique * costs[best]) continue;
      found.centres.push(x0 + BLOCK / 2 - 0.5, y0 + BLOCK / 2 - 0.5);
      found.motion.push(x - REACH + between(costs, best, x, 1), y - REACH + between(costs, best, y, SIZE));
    }
  return found;
}

function textureOf(grey: Float32Array, y0: number, x0: number): number {
  let sum = 0, squares = 0;
  for (let y = y0; y < y0 + BLOCK; y++)
    for (let x = x0; x < x0 + BLOCK; x++) {
      const value = grey[y * WIDTH + x];
      sum += value;
      squares += value * value;
    }
  return squares / BLOCK ** 2 - (sum / BLOCK ** 2) ** 2;
}

/** The minimum of the parabola through a cost and its neighbours along a step, from -0.5 to 0.5. */
function between(costs: Float32Array, at: number, place: number, step: number): number {
  if (place <= 0 || place >= SIZE - 1) return 0;
  const before = costs[at - step], after = costs[at + step];
  const bend = before - 2 * costs[at] + after;
  return bend > 1e-9 ? Math.min(0.5, Math.max(-0.5, (before - after) / (2 * bend))) : 0;
}

/** How far pixels (x, y in turns) move when a camera of focal length f (px) turns by R. */
export function turnedFlow(points: readonly number[], R: Matrix, f = FOCAL_GUESS * WIDTH): number[] {
  const cx = (WIDTH - 1) / 2, cy = (HEIGHT - 1) / 2, flow: number[] = [];
  for (let at = 0; at < points.length; at += 2) {
    const ray = [(points[at] - cx) / f, (points[at + 1] - cy) / f, 1];
    const [x, y, z] = [0, 1, 2].map((i) => R[i] * ray[0] + R[3 + i] * ray[1] + R[6 + i] * ray[2]); // R transposed
    const depth = Math.max(z, 1e-9 / f);
    flow.push((f * x + cx * z) / depth - points[at], (f * y + cy * z) / depth - points[at + 1]);
  }
  return flow;
}

/** The affine motion that most blocks follow, at the same points: least squares, each round weighted down by the
 * residuals (Cauchy, scale 0.5 px); the median motion for fewer than six. */
export function affineFlow(points: readonly number[], motion: readonly number[], rounds = 6): number[] {
  const count = points.length / 2;
  if (count < 6) {
    const middle = [0, 1].map((axis) => median(motion.filter((_, at) => at % 2 === axis)));
    return motion.map((_, at) => middle[at % 2]);
  }
  const weights = new Float64Array(count).fill(1);
  let flow = [...motion];
  for (let round = 0; round < rounds; round++) {
    const A = new Float64Array(9), bx = [0, 0, 0], by = [0, 0, 0];
    for (let at = 0; at < count; at++) {
      const term = [points[2 * at] / WIDTH, points[2 * at + 1] / WIDTH, 1];
      for (let i = 0; i < 3; i++) {
        for (let j = 0; j < 3; j++) A[3 * i + j] += weights[at] * term[i] * term[j];
        bx[i] += weights[at] * term[i] * motion[2 * at];
        by[i] += weights[at] * term[i] * motion[2 * at + 1];
      }
    }
    const inverse = inverted(A);
    if (inverse === null) break;
    const solve = (b: number[]): number[] =>
      [0, 1, 2].map((i) => inverse[3 * i] * b[0] + inverse[3 * i + 1] * b[1] + inverse[3 * i + 2] * b[2]);
    const x = solve(bx), y = solve(by);
    flow = [];
    for (let at = 0; at < count; at++) {
      const u = points[2 * at] / WIDTH, v = points[2 * at + 1] / WIDTH;
      flow.push(x[0] * u + x[1] * v + x[2], y[0] * u + y[1] * v + y[2]);
      const off = Math.hypot(motion[2 * at] - flow[2 * at], motion[2 * at + 1] - flow[2 * at + 1]);
      weights[at] = 1 / (1 + (off / 0.5) ** 2);
    }
  }
  return flow;
}

function inverted(A: Float64Array): number[] | null {
  const [a, b, c, d, e, f, g, h, i] = A;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  if (Math.abs(det) < 1e-12) return null;
  return [e * i - f * h, c * h - b * i, b * f - c * e, f * g - d * i, a * i - c * g, c * d - a * f, d * h - e * g, b * g - a * h,
    a * e - b * d].map((value) => value / det);
}

export function median(values: readonly number[]): number {
  return percentile(values, 50);
}

/** With linear interpolation between ranks. */
export function percentile(values: readonly number[], percent: number): number {
  if (values.length === 0) return 0;
  const sorted = [...values].sort((one, other) => one - other);
  const rank = (percent / 100) * (sorted.length - 1), low = Math.floor(rank);
  return sorted[low] + (rank - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

/** The near field's own motion, px in 0.1 s, and every block's; R is the camera's rotation where it is known. */
export function residual(
  before: Float32Array, after: Float32Array, gapS: number, limits: MotionLimits, R: Matrix | null,
): [number, Blocks] {
  const blocks = matchBlocks(before, after, limits);
  if (blocks.centres.length === 0 || gapS <= 0) return [0, blocks];
  const own = R === null ? affineFlow(blocks.centres, blocks.motion) : turnedFlow(blocks.centres, R);
  let left = blocks.motion.map((value, at) => value - own[at]);
  if (R !== null) { // the camera's travel, which a gyroscope does not feel
    const middle = [0, 1].map((axis) => median(left.filter((_, at) => at % 2 === axis)));
    left = left.map((value, at) => value - middle[at % 2]);
  }
  const rest = { centres: blocks.centres, motion: left.map((value) => value * (0.1 / gapS)) };
  const near: number[] = [];
  for (let at = 0; at < rest.motion.length; at += 2)
    if (rest.centres[at + 1] > HEIGHT / 3) near.push(Math.hypot(rest.motion[at], rest.motion[at + 1]));
  return [near.length > 0 ? percentile(near, 85) : 0, rest];
}

/** The camera's rotation from the body's. */
export const inCamera = (R: Matrix, cameraFromBody: Matrix = IDENTITY): Matrix =>
  times(times(cameraFromBody, R), [0, 3, 6, 1, 4, 7, 2, 5, 8].map((at) => cameraFromBody[at]));
