import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { type Plugin, defineConfig } from "vite";

/** What is loaded by name at run time, from the app's own origin: ONNX Runtime's WebAssembly; of MediaPipe the SIMD
 * builds, the light hand model and the model of near faces. Folder of npm, folder of the app, files. */
const PARTS: [string, string, RegExp][] = [
  ["onnxruntime-web/dist", "ort", /^ort-wasm-simd-threaded\.(mjs|wasm)$/],
  ["@mediapipe/hands", "mediapipe/hands",
    /^(hands\.js|hands\.binarypb|hand_landmark_lite\.tflite|hands_solution_packed_assets.*|hands_solution_simd_wasm_bin\..*)$/],
  ["@mediapipe/face_detection", "mediapipe/face_detection",
    /^(face_detection\.js|face_detection_short\.binarypb|face_detection_short_range\.tflite|face_detection_solution_simd_wasm_bin\..*)$/],
];

/** Copies those parts, and writes the service worker with the list of the app's shell. */
function phone(): Plugin {
  return {
    name: "phone",
    enforce: "post",
    generateBundle(_options, bundle) {
      for (const [from, to, wanted] of PARTS)
        for (const name of readdirSync(`node_modules/${from}`).filter((file) => wanted.test(file)))
          this.emitFile({ type: "asset", fileName: `${to}/${name}`, source: readFileSync(`node_modules/${from}/${name}`) });
      const later = /^(mediapipe|ort)\/|\/ort\./;
      const parts = [...Object.keys(bundle).filter((name) => later.test(name)), "models/hands.onnx"].sort();
      const shell = [...Object.keys(bundle).filter((name) => !later.test(name)), ...readdirSync("public")].sort();
      const version = createHash("sha256");
      for (const name of shell) {
        const part = bundle[name];
        version.update(name);
        version.update(part === undefined ? readFileSync(`public/${name}`) : part.type === "chunk" ? part.code : part.source);
      }
      const source = readFileSync("src/sw.js", "utf8")
        .replace("__VERSION__", version.digest("hex").slice(0, 16))
        .replace("__PARTS__", JSON.stringify(parts))
        .replace("__SHELL__", JSON.stringify(["./", ...shell.filter((name) => name !== "index.html")]));
      this.emitFile({ type: "asset", fileName: "sw.js", source });
    },
  };
}

export default defineConfig({
  base: "./",
  plugins: [phone()],
  build: {
    outDir: "../src/haversack/collect/app",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
});
