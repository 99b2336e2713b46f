// Alternates measurements of llama.cpp and Witan on one model file and prints medians and their ratios. README.md says
// what is measured.

import {spawnSync} from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import {fileURLToPath} from "node:url";
import {parseArgs} from "node:util";

import {coresBusyWithOthers, readTicks} from "./cpu_use.mjs";
import {ratioPlot} from "./plot.mjs";
import {ratio, summary} from "./statistics.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const KV_TYPES = ["F16", "F32", "BF16", "Q8_0"];
const USAGE = `usage: bench/compare/run --model FILE.gguf [options]

  --model FILE       GGUF file
  --prompt N,...     tokens of prompts (512)
  --depth N,...      tokens that a sequence has before it generates (0)
  --batch N,...      sequences that generate together (1)
  --num-tokens N     tokens that each generates; 0: prompts alone (64)
  --threads N        threads of each engine (2)
  --rounds N         rounds of one measurement of each engine (5)
  --kv-type TYPE     KV cache: ${KV_TYPES.join(", ")} (F16)
  --llama-kv-type TYPE  KV cache of llama.cpp, if another
  --avx2             both without AVX-512; not with LLAMA_CPP
  --witan FILE       Witan's program (build/release/bin/witan)
  --witan-arg ARG    one more argument for 'witan bench'; repeatable
  --json FILE        also write everything measured
  --svg FILE         also draw the ratios

LLAMA_CPP=FOLDER in the environment names a built tree of llama.cpp to measure, instead of the one from npm.
`;

function fail(message) {
  process.stderr.write(`compare: ${message}\n`);
  process.exit(1);
}

function wholeNumber(name, text, least) {
  const value = Number(text);
  if (!Number.isInteger(value) || value < least) fail(`--${name} must be a whole number from ${least}, not '${text}'`);
  return value;
}

const wholeNumbers = (name, text, least) => text.split(",").map((part) => wholeNumber(name, part, least));

function readOptions() {
  let parsed;
  try {
    parsed = parseArgs({
      options: {
        "model": {type: "string"},
        "prompt": {type: "string", default: "512"},
        "depth": {type: "string", default: "0"},
        "batch": {type: "string", default: "1"},
        "num-tokens": {type: "string", default: "64"},
        "threads": {type: "string", default: "2"},
        "rounds": {type: "string", default: "5"},
        "kv-type": {type: "string", default: "F16"},
        "llama-kv-type": {type: "string"},
        "avx2": {type: "boolean", default: false},
        "witan": {type: "string", default: path.join(HERE, "../../build/release/bin/witan")},
        "witan-arg": {type: "string", multiple: true, default: []},
        "llama-program": {type: "string"},
        "llama-backends": {type: "string"},
        "llama-version": {type: "string"},
        "json": {type: "string"},
        "svg": {type: "string"},
        "help": {type: "boolean", default: false},
      },
    }).values;
  } catch (error) {
    fail(`${error.message}\n${USAGE}`);
  }
  if (parsed.help) {
    process.stdout.write(USAGE);
    process.exit(0);
  }
  if (parsed.model === undefined) fail(`no --model\n${USAGE}`);
  parsed["llama-kv-type"] ??= parsed["kv-type"];
  for (const name of ["kv-type", "llama-kv-type"]) {
    if (!KV_TYPES.includes(parsed[name])) fail(`--${name} must be one of ${KV_TYPES.join(", ")}, not '${parsed[name]}'`);
  }
  for (const file of [parsed.model, parsed.witan]) {
    if (!fs.existsSync(file)) fail(`no file '${file}'`);
  }
  return {
    model: path.resolve(parsed.model),
    prompts: wholeNumbers("prompt", parsed.prompt, 1),
    depths: wholeNumbers("depth", parsed.depth, 0),
    batches: wholeNumbers("batch", parsed.batch, 1),
    numTokens: wholeNumber("num-tokens", parsed["num-tokens"], 0),
    threads: wholeNumber("threads", parsed.threads, 1),
    rounds: wholeNumber("rounds", parsed.rounds, 1),
    kvType: parsed["kv-type"],
    llamaKvType: parsed["llama-kv-type"],
    avx2: parsed.avx2,
    witan: path.resolve(parsed.witan),
    witanArguments: parsed["witan-arg"],
    llama: {program: parsed["llama-program"], backends: parsed["llama-backends"], version: parsed["llama-version"]},
    json: parsed.json,
    svg: parsed.svg,
  };
}

// In the order of `witan bench`.
function casesOf(options) {
  const cases = options.prompts.map((prompt) => ({name: `prompt ${prompt}`, llama: `prompt:${prompt}`}));
  if (options.numTokens === 0) return cases;
  for (const depth of options.depths) {
    for (const batch of options.batches) {
      cases.push({name: `generate, ${batch} x ${depth} deep`, llama: `generate:${depth}:${batch}`});
    }
  }
  return cases;
}

// llama.cpp takes the best of the libraries that it finds in a folder.
function folderWithAvx2Alone(backends) {
  if (process.env.LLAMA_CPP) fail("--avx2 chooses among the libraries from npm; build the tree of LLAMA_CPP for AVX2 instead");
  const library = path.join(backends, "libggml-cpu-haswell.so");
  if (!fs.existsSync(library)) fail(`--avx2 needs ${library}`);
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "witan-compare-"));
  process.on("exit", () => fs.rmSync(folder, {recursive: true}));
  fs.symlinkSync(library, path.join(folder, path.basename(library)));
  return folder;
}

function execute(program, programArguments, environment = {}) {
  const run = spawnSync(program, programArguments, {
    encoding: "utf8", maxBuffer: 1 << 28, env: {...process.env, ...environment},
  });
  if (run.error) fail(`${program}: ${run.error.message}`);
  if (run.status !== 0) {
    fail(`${path.basename(program)} ended with ${run.signal ?? run.status}:\n${run.stderr.slice(-4000)}`);
  }
  return JSON.parse(run.stdout);
}

function runLlamaCpp(options, cases) {
  return execute(options.llama.program, [
    options.llama.backends, options.model, String(options.threads), options.llamaKvType, String(options.numTokens),
    ...cases.map((c) => c.llama),
  ]);
}

function runWitan(options, cases) {
  const result = execute(options.witan, [
    "bench", "-m", options.model, "-p", options.prompts.join(","), "-d", options.depths.join(","), "-b",
    options.batches.join(","), "-n", String(options.numTokens), "-r", "1", "-t", String(options.threads), "--kv-type",
    options.kvType.toLowerCase(), "--json", ...options.witanArguments,
  ], options.avx2 ? {WITAN_ISA: "avx2"} : {});
  const names = result.cases.map((c) => c.name).join("; ");
  if (names !== cases.map((c) => c.name).join("; ")) fail(`witan bench measured other cases: ${names}`);
  return result;
}

function number(value) {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

function table(rows) {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows
    .map((row) => row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join("  "))
    .join("\n");
}

function print(results) {
  const spread = ({median, min, max}) => `${number(median)} (${number(min)} - ${number(max)})`;
  const rows = [["tokens/s, median (min - max)", "llama.cpp", "Witan", "Witan / llama.cpp (min - max per round)", "of limit"]];
  for (const {name, llamaCpp, witan, ratio: r, limitShare} of results) {
    rows.push([name, spread(llamaCpp), spread(witan), `${r.ofMedians.toFixed(2)} (${r.min.toFixed(2)} - ${r.max.toFixed(2)})`,
      limitShare === undefined ? "" : `${(100 * limitShare).toFixed(0)} %`]);
  }
  process.stdout.write(`${table(rows)}\n`);
}

const options = readOptions();
if (options.avx2) options.llama.backends = folderWithAvx2Alone(options.llama.backends);
const cases = casesOf(options);
const machine = {cpu: os.cpus()[0].model, cores: os.cpus().length};
const llamaCppRuns = [];
const witanRuns = [];
const ticksBefore = readTicks();
const start = performance.now();
for (let round = 0; round < options.rounds; round++) {
  llamaCppRuns.push(runLlamaCpp(options, cases));
  witanRuns.push(runWitan(options, cases));
}
machine.coresBusyWithOthers = coresBusyWithOthers(ticksBefore, readTicks(), (performance.now() - start) / 1000);

const results = cases.map(({name}, i) => {
  const llamaCpp = llamaCppRuns.map((run) => run.tokensPerSecond[i]);
  const witan = witanRuns.map((run) => run.cases[i].tokens_per_second);
  // The peaks of the cores are those of AVX-512.
  const limits = options.avx2 ? [] : witanRuns.map((run) => run.cases[i].limit_share).filter((share) => share !== undefined);
  return {name, llamaCpp: summary(llamaCpp), witan: summary(witan), ratio: ratio(witan, llamaCpp),
          limitShare: limits.length > 0 ? summary(limits).median : undefined};
});
process.stdout.write(
  `machine    ${machine.cpu}, ${machine.cores} cores\n` +
  `model      ${options.model}, ${(fs.statSync(options.model).size / 2 ** 20).toFixed(1)} MiB\n` +
  `llama.cpp  ${options.llama.version}; ${llamaCppRuns[0].systemInfo.trim()}\n` +
  `${options.threads} threads, ${options.rounds} rounds, ${options.avx2 ? "AVX2 alone, " : ""}KV cache ${options.llamaKvType} (llama.cpp) and ${options.kvType}, no mmap\n\n`);
print(results);
// Threads that wait for each other by spinning lose whole time slices to any other busy process.
if (machine.coresBusyWithOthers > 0.05) {
  process.stdout.write(`\nNOT VALID: other processes kept ${machine.coresBusyWithOthers.toFixed(2)} cores busy meanwhile\n`);
}
if (options.json) {
  fs.writeFileSync(options.json, `${JSON.stringify({options, machine, results, llamaCppRuns, witanRuns}, null, 2)}\n`);
}
if (options.svg) fs.writeFileSync(options.svg, ratioPlot(results, `Witan / llama.cpp, ${path.basename(options.model)}`));
