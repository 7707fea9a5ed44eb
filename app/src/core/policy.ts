// What an agent is told (collect/_policy.py); the server's policy takes the place of these defaults.

import { IMU, type ImuLimits } from "./imu.ts";
import { MOTION, type MotionLimits } from "./motion.ts";
import { THRESHOLDS, type Thresholds } from "./trigger.ts";

export interface Policy {
  rates: { rest_hz: number; walk_hz: number; active_hz: number; detect_hz: number; saving_hz: number };
  trigger: Thresholds;
  imu: ImuLimits;
  motion: MotionLimits;
  privacy: { minutes_blocked: [number, number][]; blur_hz: number };
  savings: { day_mib: number; low_battery: number; empty_battery: number; hot_c: number };
}

export const POLICY: Policy = {
  rates: { rest_hz: 0.1, walk_hz: 1, active_hz: 2, detect_hz: 5, saving_hz: 2 },
  trigger: THRESHOLDS,
  imu: IMU,
  motion: MOTION,
  privacy: { minutes_blocked: [], blur_hz: 5 },
  savings: { day_mib: 4096, low_battery: 30, empty_battery: 15, hot_c: 42 },
};

/** Whether a wall clock (ms) stands in a blocked time of the day (UTC). */
export function blocked(policy: Policy, wallMs: number): boolean {
  const minute = Math.floor(wallMs / 60_000) % 1440;
  return policy.privacy.minutes_blocked.some(([begin, end]) =>
    begin <= end ? begin <= minute && minute < end : minute >= begin || minute < end,
  );
}
