// Boxes made unrecognizable in the pixels themselves: a Gaussian of a sixth of the longer side, what lies outside a box
// repeats its edge, so that nothing of its inside leaks (collect/_blur.py). Large boxes are blurred at a smaller scale.

/** x0, y0, x1, y1 as shares of the picture. */
export type Box = readonly [number, number, number, number];

const SIDE_MOST = 64;

/** The weights of +-3 sigma, of sum 1. */
export function gaussian(sigma: number): Float32Array {
  const reach = Math.max(1, Math.round(3 * sigma));
  const kernel = new Float32Array(2 * reach + 1).map((_, at) => Math.exp(-0.5 * ((at - reach) / Math.max(sigma, 0.5)) ** 2));
  const sum = kernel.reduce((one, other) => one + other, 0);
  return kernel.map((value) => value / sum);
}

/** Blurs RGBA pixels in place, as a whole. */
export function blurPixels(data: Uint8ClampedArray, width: number, height: number): void {
  const factor = Math.max(1, Math.ceil(Math.max(width, height) / SIDE_MOST));
  const w = Math.max(1, Math.floor(width / factor)), h = Math.max(1, Math.floor(height / factor));
  let small = new Float32Array(w * h * 3);
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++) {
      const [top, bottom] = [Math.floor((y * height) / h), Math.floor(((y + 1) * height) / h)];
      const [left, right] = [Math.floor((x * width) / w), Math.floor(((x + 1) * width) / w)];
      for (let row = top; row < bottom; row++)
        for (let column = left; column < right; column++)
          for (let c = 0; c < 3; c++)
            small[(y * w + x) * 3 + c] += data[(row * width + column) * 4 + c] / ((bottom - top) * (right - left));
    }
  const kernel = gaussian(Math.max(w, h) / 6), reach = (kernel.length - 1) / 2;
  for (const [step, length, lines, along] of [[3 * w, h, w, 3], [3, w, h, 3 * w]]) {
    const out = new Float32Array(small.length);
    for (let line = 0; line < lines; line++)
      for (let at = 0; at < length; at++)
        for (let k = -reach; k <= reach; k++) {
          const from = Math.min(length - 1, Math.max(0, at + k)), weight = kernel[k + reach];
          for (let c = 0; c < 3; c++) out[line * along + at * step + c] += weight * small[line * along + from * step + c];
        }
    small = out;
  }
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const from = Math.floor((y * h) / height) * w + Math.floor((x * w) / width);
      for (let c = 0; c < 3; c++) data[(y * width + x) * 4 + c] = Math.round(small[from * 3 + c]);
    }
}

/** A box grown by a share of its sides, inside the picture. */
export function grown([x0, y0, x1, y1]: Box, share: number): Box {
  const dx = (x1 - x0) * share, dy = (y1 - y0) * share;
  return [Math.max(0, x0 - dx), Math.max(0, y0 - dy), Math.min(1, x1 + dx), Math.min(1, y1 + dy)];
}
