// Alternates measurements of llama.cpp and Witan on one model file and prints medians and their ratios. README.md says
// what is measured.

import {spawnSync} from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import {fileURLToPath} from "node:url";
import {parseArgs} from "node:util";

import {coresBusyWithOthers, readTicks} from "./cpu_use.mjs";
import {ratio, summary} from "./statistics.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const USAGE = `usage: bench/compare/run --model FILE.gguf [options]

  --model FILE       GGUF file with a tokenizer
  --prompt N         prompt tokens (512)
  --decode N         decode steps after the prompt (64)
  --threads N        threads of each engine (2)
  --rounds N         rounds of one measurement of each engine (5)
  --kv-type TYPE     KV cache of both: F16 (their default) or F32
  --witan FILE       Witan's program (build/release/bin/witan)
  --witan-arg ARG    one more argument for 'witan run'; repeatable
  --llama-only       measure llama.cpp alone
  --json FILE        also write everything measured
`;

function fail(message) {
  process.stderr.write(`compare: ${message}\n`);
  process.exit(1);
}

function positive(name, text) {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) fail(`--${name} must be a positive whole number, not '${text}'`);
  return value;
}

function readOptions() {
  let parsed;
  try {
    parsed = parseArgs({
      options: {
        "model": {type: "string"},
        "prompt": {type: "string", default: "512"},
        "decode": {type: "string", default: "64"},
        "threads": {type: "string", default: "2"},
        "rounds": {type: "string", default: "5"},
        "kv-type": {type: "string", default: "F16"},
        "witan": {type: "string", default: path.join(HERE, "../../build/release/bin/witan")},
        "witan-arg": {type: "string", multiple: true, default: []},
        "llama-only": {type: "boolean", default: false},
        "json": {type: "string"},
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
  if (!["F16", "F32"].includes(parsed["kv-type"])) fail(`--kv-type must be F16 or F32, not '${parsed["kv-type"]}'`);
  const needed = parsed["llama-only"] ? [parsed.model] : [parsed.model, parsed.witan];
  for (const file of needed) {
    if (!fs.existsSync(file)) fail(`no file '${file}'`);
  }
  return {
    model: path.resolve(parsed.model),
    promptTokens: positive("prompt", parsed.prompt),
    decodeTokens: positive("decode", parsed.decode),
    threads: positive("threads", parsed.threads),
    rounds: positive("rounds", parsed.rounds),
    kvType: parsed["kv-type"],
    witan: path.resolve(parsed.witan),
    witanArguments: parsed["witan-arg"],
    llamaOnly: parsed["llama-only"],
    json: parsed.json,
  };
}

function execute(program, programArguments) {
  const run = spawnSync(program, programArguments, {encoding: "utf8", maxBuffer: 1 << 28});
  if (run.error) fail(`${program}: ${run.error.message}`);
  if (run.status !== 0) {
    fail(`${path.basename(program)} ended with ${run.signal ?? run.status}:\n${run.stderr.slice(-4000)}`);
  }
  return run.stdout;
}

function runLlamaCpp(options, decodeTokens) {
  const packages = path.join(HERE, "node_modules");
  return JSON.parse(execute(path.join(packages, ".witan/llama_cpp"), [
    path.join(packages, "@node-llama-cpp/linux-x64/bins/linux-x64"), options.model, String(options.promptTokens),
    String(decodeTokens), String(options.threads), options.kvType,
  ]));
}

// The prompt gives the first token, so decodeTokens steps give decodeTokens more.
function runWitan(options, prompt) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "witan-compare-"));
  try {
    const file = path.join(folder, "stats.json");
    execute(options.witan, [
      "run", "-m", options.model, "-p", prompt, "-n", String(options.decodeTokens + 1), "--ignore-eos",
      "--threads", String(options.threads), "--kv-type", options.kvType.toLowerCase(), "--quiet", "--stats-json", file,
      ...options.witanArguments,
    ]);
    const stats = JSON.parse(fs.readFileSync(file, "utf8"));
    if (stats.prompt_tokens !== options.promptTokens || stats.decode_tokens !== options.decodeTokens) {
      fail(`the engines disagree about the text: llama.cpp has ${options.promptTokens} prompt tokens and ` +
           `${options.decodeTokens} decode steps, Witan ${stats.prompt_tokens} and ${stats.decode_tokens}`);
    }
    return {prefillSeconds: stats.prefill_seconds, decodeSeconds: stats.decode_seconds, stats};
  } finally {
    fs.rmSync(folder, {recursive: true});
  }
}

function speeds(options, runs) {
  return {
    prefill: runs.map((run) => options.promptTokens / run.prefillSeconds),
    decode: runs.map((run) => options.decodeTokens / run.decodeSeconds),
  };
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

function report(options, llamaCpp, witan) {
  const rows = [["tokens/s, median (min - max)", "llama.cpp"]];
  if (witan) rows[0].push("Witan", "Witan / llama.cpp (min - max per round)");
  const spread = ({median, min, max}) => `${number(median)} (${number(min)} - ${number(max)})`;
  const results = {};
  for (const [phase, title] of [["prefill", `prefill of ${options.promptTokens}`],
                                ["decode", `decode of ${options.decodeTokens} after that`]]) {
    const row = [title, spread(summary(llamaCpp[phase]))];
    results[phase] = {llamaCpp: summary(llamaCpp[phase])};
    if (witan) {
      const r = ratio(witan[phase], llamaCpp[phase]);
      row.push(spread(summary(witan[phase])), `${r.ofMedians.toFixed(3)} (${r.min.toFixed(3)} - ${r.max.toFixed(3)})`);
      results[phase].witan = summary(witan[phase]);
      results[phase].ratio = r;
    }
    rows.push(row);
  }
  process.stdout.write(`${table(rows)}\n`);
  return results;
}

const options = readOptions();
const first = runLlamaCpp(options, 0);
const machine = {cpu: os.cpus()[0].model, cores: os.cpus().length};
process.stdout.write(
  `machine    ${machine.cpu}, ${machine.cores} cores\n` +
  `model      ${options.model}, ${(fs.statSync(options.model).size / 2 ** 20).toFixed(1)} MiB\n` +
  `llama.cpp  ${first.version}, prebuilt by node-llama-cpp, KV cache ${options.kvType}; ${first.systemInfo.trim()}\n` +
  `${options.threads} threads, ${options.rounds} rounds, no mmap\n\n`);

const llamaCppRuns = [];
const witanRuns = [];
const ticksBefore = readTicks();
const start = performance.now();
for (let round = 0; round < options.rounds; round++) {
  llamaCppRuns.push(runLlamaCpp(options, options.decodeTokens));
  if (!options.llamaOnly) witanRuns.push(runWitan(options, first.prompt));
}
machine.coresBusyWithOthers = coresBusyWithOthers(ticksBefore, readTicks(), (performance.now() - start) / 1000);
const results = report(options, speeds(options, llamaCppRuns), options.llamaOnly ? undefined : speeds(options, witanRuns));
// Threads that wait for each other by spinning lose whole time slices to any other busy process.
if (machine.coresBusyWithOthers > 0.05) {
  process.stdout.write(`\nNOT VALID: other processes kept ${machine.coresBusyWithOthers.toFixed(2)} cores busy meanwhile\n`);
}
if (options.json) {
  fs.writeFileSync(options.json, `${JSON.stringify({options, machine, systemInfo: first.systemInfo,
    version: first.version, results, llamaCppRuns, witanRuns}, null, 2)}\n`);
}
