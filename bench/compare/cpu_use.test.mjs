import assert from "node:assert/strict";
import {test} from "node:test";

import {coresBusyWithOthers, parseTicks} from "./cpu_use.mjs";

const OWN = "4242 (a name) with) S 1 1 1 0 -1 4194560 10 20 30 40 100 20 3 4 20 0 11 0 99";

test("idle and waiting time is not use, stolen time is", () => {
  assert.equal(parseTicks("cpu  10 20 30 9999 8888 1 2 4 0 0\ncpu0 1 1", OWN).machine, 67);
});

test("a process's own time counts its children and survives a bracket in its name", () => {
  assert.equal(parseTicks("cpu  0 0 0 0 0 0 0 0 0 0", OWN).own, 127);
});

test("others are what the machine did less what we did", () => {
  const before = {machine: 1000, own: 100};
  assert.equal(coresBusyWithOthers(before, {machine: 1500, own: 400}, 2), 1);
  assert.equal(coresBusyWithOthers(before, {machine: 1300, own: 401}, 2), 0);
});
