// MediaPipe's hands and faces as plug-ins: their scripts, models and WebAssembly lie in this app's own origin.

import { type Box, grown } from "../core/blur.ts";
import type { Detector } from "../core/detector.ts";
import type { Blocks, Picture } from "../core/motion.ts";
import type { Hand } from "../core/trigger.ts";

interface Point { x: number; y: number; z: number }
interface HandResults { multiHandLandmarks: Point[][]; multiHandedness: { label: string; score: number }[] }
interface FaceResults { detections: { boundingBox: { xCenter: number; yCenter: number; width: number; height: number } }[] }
interface Solution<R> {
  setOptions(options: Record<string, unknown>): void;
  onResults(heard: (results: R) => void): void;
  initialize(): Promise<void>;
  send(input: { image: unknown }): Promise<void>;
}
type Maker<R> = new (options: { locateFile: (name: string) => string }) => Solution<R>;

const FLESH = 0.12, FACE_GROWN = 0.25;

function script(address: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.src = address;
    element.onload = () => resolve();
    element.onerror = () => reject(new Error(`${address} could not be loaded`));
    document.head.append(element);
  });
}

async function solution<R>(
  folder: string, name: string, maker: string, options: Record<string, unknown>,
): Promise<(image: unknown) => Promise<R>> {
  await script(`./mediapipe/${folder}/${name}`);
  const Made = (globalThis as unknown as Record<string, Maker<R>>)[maker];
  const made = new Made({ locateFile: (file) => new URL(`./mediapipe/${folder}/${file}`, document.baseURI).href });
  made.setOptions(options);
  let results: R | null = null;
  made.onResults((found) => { results = found; });
  await made.initialize();
  const blank = document.createElement("canvas");
  blank.width = blank.height = 64;
  blank.getContext("2d")?.fillRect(0, 0, 64, 64);
  await made.send({ image: blank }); // the first picture takes long
  return async (image) => {
    results = null;
    await made.send({ image });
    if (results === null) throw new Error(`${folder} gave no answer`);
    return results;
  };
}

/** How closed a hand is between thumb and the next two fingertips, in [0, 1]: what stands for contact. [inferred] */
export function grip(points: readonly Point[], aspect: number): number {
  const far = (one: Point, other: Point): number => Math.hypot((one.x - other.x) * aspect, one.y - other.y);
  const palm = Math.max(1e-6, far(points[0], points[9]));
  const pinch = Math.min(far(points[4], points[8]), far(points[4], points[12])) / palm;
  return Math.min(1, Math.max(0, 1 - (pinch - 0.2) / 0.8));
}

/** A hand of 21 points as a box. MediaPipe names sides as in a mirror; the rear camera is none. */
export function handOf(points: readonly Point[], handedness: { label: string; score: number }, aspect: number): Hand {
  const xs = points.map((point) => point.x), ys = points.map((point) => point.y);
  const box = grown([Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)], FLESH);
  const [x0, y0, x1, y1] = box.map((value) => Math.min(1, Math.max(0, value)));
  return { x0, y0, x1, y1, score: handedness.score, contact: grip(points, aspect), side: handedness.label === "Left" ? 1 : 0 };
}

/** People's hands. */
export async function mediapipeHands(): Promise<Detector> {
  const look = await solution<HandResults>("hands", "hands.js", "Hands", {
    maxNumHands: 2, modelComplexity: 0, minDetectionConfidence: 0.5, minTrackingConfidence: 0.5, selfieMode: false,
  });
  return {
    name: "mediapipe",
    detect: async (picture: Picture, _moving: Blocks, source?: CanvasImageSource): Promise<Hand[]> => {
      const found = await look(await drawn(source, picture));
      const aspect = picture.width / picture.height;
      const hands = found.multiHandLandmarks.map((points, at) => handOf(points, found.multiHandedness[at], aspect));
      return hands.filter((hand) => hand.x1 > hand.x0 && hand.y1 > hand.y0).sort((one, other) => other.score - one.score);
    },
  };
}

/** Boxes of faces, grown so that hair, chin and a fifth of a second of motion are inside. */
export type Faces = (source: CanvasImageSource) => Promise<Box[]>;

export async function mediapipeFaces(): Promise<Faces> {
  const look = await solution<FaceResults>("face_detection", "face_detection.js", "FaceDetection", {
    model: "short", selfieMode: false, minDetectionConfidence: 0.4,
  });
  return async (source) => {
    const { detections } = await look(await drawn(source));
    return detections.map(({ boundingBox: { xCenter: x, yCenter: y, width, height } }) =>
      grown([x - width / 2, y - height / 2, x + width / 2, y + height / 2], FACE_GROWN));
  };
}

let canvas: HTMLCanvasElement | null = null;

/** As a canvas: MediaPipe reads no VideoFrame. */
async function drawn(source: CanvasImageSource | undefined, picture?: Picture): Promise<HTMLCanvasElement> {
  canvas ??= document.createElement("canvas");
  const pixels = (): ImageData => new ImageData(new Uint8ClampedArray(picture?.data ?? []), picture?.width ?? 1);
  const image = source ?? (await createImageBitmap(pixels()));
  const width = image instanceof VideoFrame ? image.displayWidth : (image as HTMLCanvasElement).width;
  const height = image instanceof VideoFrame ? image.displayHeight : (image as HTMLCanvasElement).height;
  const scale = Math.min(1, 640 / Math.max(width, height));
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}
