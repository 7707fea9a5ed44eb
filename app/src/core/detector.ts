// The third gate: which hands are in the picture, and do they hold something (collect/detector.py). A detector is a
// plug-in; this one runs the very ONNX file that the agent in Python runs.

import type { Blocks, Picture } from "./motion.ts";
import type { Hand } from "./trigger.ts";

export interface Detector {
  readonly name: string;
  /** At most two hands, best first. `source` is what the picture was taken from, for plug-ins that read it themselves. */
  detect(picture: Picture, moving: Blocks, source?: CanvasImageSource): Promise<Hand[]>;
}

export const IN_WIDTH = 192, IN_HEIGHT = 108;

/** RGB [3, 108, 192] in [0, 1], the nearest pixels. */
export function sampled(picture: Picture): Float32Array {
  const { width, height, channels, data } = picture;
  const out = new Float32Array(3 * IN_HEIGHT * IN_WIDTH), plane = IN_HEIGHT * IN_WIDTH;
  for (let y = 0; y < IN_HEIGHT; y++) {
    const row = Math.floor((y * height) / IN_HEIGHT);
    for (let x = 0; x < IN_WIDTH; x++) {
      const at = (row * width + Math.floor((x * width) / IN_WIDTH)) * channels, to = y * IN_WIDTH + x;
      for (let channel = 0; channel < 3; channel++) out[channel * plane + to] = data[at + channel] / 255;
    }
  }
  return out;
}

/** What a detector's network gives: boxes [n, 4], the others [n]. */
export interface Raw {
  boxes: ArrayLike<number>; scores: ArrayLike<number>; sides: ArrayLike<number>; contacts: ArrayLike<number>;
}

const clip = (value: number): number => Math.min(1, Math.max(0, value));

/** The best boxes that overlap by less than `overlap`. */
export function suppressed(raw: Raw, least = 0.3, overlap = 0.45, most = 2): Hand[] {
  const order: number[] = [];
  for (let at = 0; at < raw.scores.length; at++) if (raw.scores[at] >= least) order.push(at);
  order.sort((one, other) => raw.scores[other] - raw.scores[one] || one - other);
  const kept: Hand[] = [];
  for (const at of order) {
    if (kept.length === most) break;
    const [x0, y0, x1, y1] = [0, 1, 2, 3].map((corner) => clip(raw.boxes[4 * at + corner]));
    const score = Math.min(1, raw.scores[at]), contact = clip(raw.contacts[at]);
    const hand = { x0, y0, x1, y1, score, contact, side: raw.sides[at] > 0.5 ? 1 : 0 };
    if (x1 > x0 && y1 > y0 && kept.every((other) => iou(hand, other) < overlap)) kept.push(hand);
  }
  return kept;
}

/** Intersection over union of two boxes. */
export function iou(one: Hand, other: Hand): number {
  const width = Math.min(one.x1, other.x1) - Math.max(one.x0, other.x0);
  const height = Math.min(one.y1, other.y1) - Math.max(one.y0, other.y0);
  if (width <= 0 || height <= 0) return 0;
  const areas = [one, other].reduce((sum, hand) => sum + (hand.x1 - hand.x0) * (hand.y1 - hand.y0), 0);
  return (width * height) / (areas - width * height);
}

/** Runs the network: a picture [1, 3, 108, 192] in, its raw outputs out. */
export type Network = (picture: Float32Array) => Promise<Raw>;

export class OwnDetector implements Detector {
  readonly name = "hands";
  constructor(private readonly run: Network) {}

  async detect(picture: Picture): Promise<Hand[]> {
    return suppressed(await this.run(sampled(picture)));
  }
}
