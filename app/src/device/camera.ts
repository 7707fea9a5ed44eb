// The rear camera: opened without sound, exposure and focus locked where the browser can, frames on the clock of
// performance.now() in nanoseconds.

import type { Picture } from "../core/motion.ts";
import type { VideoSource } from "./ring.ts";

const LOCK_AFTER_MS = 2000;
const WORKING_WIDTH = 640;

interface FrameReader { read(): Promise<{ done: boolean; value?: VideoFrame }>; cancel(): Promise<void> }
declare const MediaStreamTrackProcessor:
  | undefined
  | (new (init: { track: MediaStreamTrack; maxBufferSize?: number }) => { readable: ReadableStream<VideoFrame> });

export interface Camera {
  stream: MediaStream;
  fps: number;
  /** What could be locked: exposure, focus, white balance. */
  locked: string[];
  label: string;
  frames(): AsyncGenerator<LiveFrame>;
  close(): void;
}

/** One frame; `picture` reads its pixels, at most 640 wide, once. */
export class LiveFrame implements VideoSource {
  private pixels: Picture | null = null;
  constructor(readonly t: number, private readonly frame: VideoFrame) {}

  get source(): CanvasImageSource {
    return this.frame;
  }

  picture(): Picture {
    if (this.pixels === null) {
      const scale = Math.min(1, WORKING_WIDTH / this.frame.displayWidth);
      const width = Math.round(this.frame.displayWidth * scale), height = Math.round(this.frame.displayHeight * scale);
      const context = reading(width, height);
      context.drawImage(this.frame, 0, 0, width, height);
      this.pixels = { width, height, channels: 4, data: context.getImageData(0, 0, width, height).data };
    }
    return this.pixels;
  }

  video(): VideoFrame {
    return new VideoFrame(this.frame, { timestamp: Math.round(this.t / 1000) });
  }

  close(): void {
    this.frame.close();
  }
}

let canvas: HTMLCanvasElement | null = null;
function reading(width: number, height: number): CanvasRenderingContext2D {
  canvas ??= document.createElement("canvas");
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error("this browser cannot read pictures");
  context.imageSmoothingQuality = "high";
  return context;
}

/** Asks for the camera. Throws what the browser says when it is refused or absent. */
export async function openCamera(): Promise<Camera> {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: false,
    video: { facingMode: { ideal: "environment" }, width: { ideal: 1920 }, height: { ideal: 1080 }, frameRate: { ideal: 30 } },
  });
  const track = stream.getVideoTracks()[0];
  const settings = track.getSettings();
  const camera: Camera = {
    stream,
    fps: settings.frameRate && settings.frameRate > 0 ? settings.frameRate : 30,
    locked: [],
    label: track.label,
    frames: () => (typeof MediaStreamTrackProcessor === "undefined" ? byVideo(stream) : byTrack(track)),
    close: () => track.stop(),
  };
  setTimeout(() => void lock(track).then((locked) => { camera.locked = locked; }), LOCK_AFTER_MS);
  return camera;
}

/** Holds what the camera's automatics have found by now; stabilization would break the geometry. */
async function lock(track: MediaStreamTrack): Promise<string[]> {
  const able = (track.getCapabilities?.() ?? {}) as Record<string, unknown>;
  const locked: string[] = [];
  for (const mode of ["exposureMode", "focusMode", "whiteBalanceMode"]) {
    if (!(able[mode] as string[] | undefined)?.includes("manual")) continue;
    try {
      await track.applyConstraints({ advanced: [{ [mode]: "manual" } as MediaTrackConstraintSet] });
      locked.push(mode.replace("Mode", ""));
    } catch {
      // it stays automatic, and is not in the list of what is locked
    }
  }
  return locked;
}

async function* byTrack(track: MediaStreamTrack): AsyncGenerator<LiveFrame> {
  if (typeof MediaStreamTrackProcessor === "undefined") return;
  const reader = new MediaStreamTrackProcessor({ track, maxBufferSize: 8 }).readable.getReader() as FrameReader;
  let offset: number | null = null;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done || value === undefined) return;
      offset ??= performance.now() * 1e6 - value.timestamp * 1000;
      const frame = new LiveFrame(Math.round(value.timestamp * 1000 + offset), value);
      try {
        yield frame;
      } finally {
        frame.close();
      }
    }
  } finally {
    void reader.cancel();
  }
}

async function* byVideo(stream: MediaStream): AsyncGenerator<LiveFrame> {
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  await video.play();
  const track = stream.getVideoTracks()[0];
  while (track.readyState === "live") {
    const at = await new Promise<number>((resolve) =>
      video.requestVideoFrameCallback((now, meta) => resolve(meta.captureTime ?? now)));
    const frame = new LiveFrame(Math.round(at * 1e6), new VideoFrame(video, { timestamp: Math.round(at * 1000) }));
    try {
      yield frame;
    } finally {
      frame.close();
    }
  }
}
