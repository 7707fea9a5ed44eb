// The phone's motion sensors in the axes of its rear camera, its battery, and a screen that stays on.

import type { Sample } from "../core/imu.ts";

interface AskingMotion { requestPermission?: () => Promise<string> }

/** From the phone's axes (x right, y up, z out of the screen, as it stands in the hand) to the rear camera's (x right,
 * y down, z forward), for a picture that was turned with the screen by `angle` degrees. */
export function inCameraAxes(v: readonly number[], angle: number): [number, number, number] {
  const turn = (angle * Math.PI) / 180, c = Math.round(Math.cos(turn)), s = Math.round(Math.sin(turn));
  const x = c * v[0] - s * v[1], y = s * v[0] + c * v[1];
  return [x, -y, -v[2]].map((value) => value || 0) as [number, number, number];
}

/** iOS gives accelerations with the other sign than the standard. [recalled] */
export const gravitySign = (agent: string): 1 | -1 => (/iPhone|iPad|iPod/.test(agent) ? -1 : 1);

/** Must be called in a tap where the browser asks (iOS). False when motion is refused or absent. */
export async function allowMotion(): Promise<boolean> {
  if (typeof DeviceMotionEvent === "undefined") return false;
  const asking = DeviceMotionEvent as unknown as AskingMotion;
  if (asking.requestPermission === undefined) return true;
  return (await asking.requestPermission().catch(() => "denied")) === "granted";
}

/** Calls back with every sample (ns of performance.now()) until the returned function is called. */
export function watchMotion(push: (t: number, sample: Sample) => void): () => void {
  const sign = gravitySign(navigator.userAgent), rad = Math.PI / 180;
  const heard = (event: DeviceMotionEvent): void => {
    const a = event.accelerationIncludingGravity, g = event.rotationRate;
    if (a?.x == null || a.y == null || a.z == null || g?.alpha == null || g.beta == null || g.gamma == null) return;
    const angle = screen.orientation?.angle ?? 0;
    const accel = inCameraAxes([sign * a.x, sign * a.y, sign * a.z], angle);
    const gyro = inCameraAxes([g.beta * rad, g.gamma * rad, g.alpha * rad], angle);
    push(Math.round(event.timeStamp * 1e6), [...accel, ...gyro]);
  };
  addEventListener("devicemotion", heard);
  return () => removeEventListener("devicemotion", heard);
}

interface Battery { level: number; charging: boolean }

/** Percent and whether it is being charged; 100 where the browser does not say. */
export async function battery(): Promise<{ percent: number; charging: boolean; known: boolean }> {
  const able = navigator as unknown as { getBattery?: () => Promise<Battery> };
  if (able.getBattery === undefined) return { percent: 100, charging: false, known: false };
  const found = await able.getBattery();
  return { percent: 100 * found.level, charging: found.charging, known: true };
}

/** Whether the connection is one that is paid by the byte; false where the browser does not say. */
export function metered(): boolean {
  const link = (navigator as unknown as { connection?: { type?: string; saveData?: boolean } }).connection;
  return link?.type === "cellular" || link?.saveData === true;
}

/** Keeps the screen on while it is held; takes the lock again when the page comes back. */
export class Awake {
  private held: WakeLockSentinel | null = null;
  private wanted = false;

  constructor() {
    document.addEventListener("visibilitychange", () => {
      if (this.wanted && document.visibilityState === "visible") void this.hold();
    });
  }

  /** False where the browser has no such lock, or refuses it. */
  async hold(): Promise<boolean> {
    this.wanted = true;
    try {
      this.held = await navigator.wakeLock.request("screen");
      return true;
    } catch {
      return false;
    }
  }

  async release(): Promise<void> {
    this.wanted = false;
    await this.held?.release();
    this.held = null;
  }
}
