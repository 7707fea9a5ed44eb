// Bundles the tests, and the stream player of the comparison with the agent in Python, for Node.

import { build } from "esbuild";
import { readdirSync, rmSync } from "node:fs";

rmSync("out", { recursive: true, force: true });
await build({
  entryPoints: readdirSync("test").filter((name) => name.endsWith(".ts")).map((name) => `test/${name}`),
  outdir: "out",
  outExtension: { ".js": ".mjs" },
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node18",
  logLevel: "warning",
});
