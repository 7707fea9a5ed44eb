// What may be stored of a frame: the frame itself, or one in which the faces that were found are blurred.

import { type Box, blurPixels } from "../core/blur.ts";
import { SECOND } from "../core/trigger.ts";
import type { Faces } from "./mediapipe.ts";
import type { VideoSource } from "./ring.ts";

export class Blurring {
  private boxes: Box[] = [];
  private before: Box[] = [];
  private looked = -Infinity;
  private readonly canvas = document.createElement("canvas");

  /** Looks for faces `hz` times a second; the boxes of the last two looks hold, since a look may miss one. */
  constructor(private readonly faces: Faces, private readonly hz: number) {}

  stored = async (frame: VideoSource): Promise<VideoFrame> => {
    const video = frame.video();
    if (frame.t - this.looked >= (0.999 * SECOND) / this.hz) {
      this.looked = frame.t;
      this.before = this.boxes;
      this.boxes = await this.faces(video);
    }
    const boxes = [...this.before, ...this.boxes];
    if (boxes.length === 0) return video;
    const { canvas } = this;
    if (canvas.width !== video.displayWidth || canvas.height !== video.displayHeight)
      [canvas.width, canvas.height] = [video.displayWidth, video.displayHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (context === null) throw new Error("this browser cannot blur pictures");
    context.drawImage(video, 0, 0);
    blurBoxes(context, boxes);
    const made = new VideoFrame(canvas, { timestamp: video.timestamp });
    video.close();
    return made;
  };
}

/** Blurs boxes of what is drawn. */
export function blurBoxes(context: CanvasRenderingContext2D, boxes: readonly Box[]): void {
  const { width, height } = context.canvas;
  for (const [x0, y0, x1, y1] of boxes) {
    const left = Math.floor(x0 * width), top = Math.floor(y0 * height);
    const w = Math.min(width, Math.ceil(x1 * width)) - left, h = Math.min(height, Math.ceil(y1 * height)) - top;
    if (w < 1 || h < 1) continue;
    const part = context.getImageData(left, top, w, h);
    blurPixels(part.data, w, h);
    context.putImageData(part, left, top);
  }
}
