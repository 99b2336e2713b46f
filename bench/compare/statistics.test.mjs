import assert from "node:assert/strict";
import {test} from "node:test";

import {median, ratio, summary} from "./statistics.mjs";

test("the median of an even count is the mean of the middle two", () => {
  assert.equal(median([4, 1, 3, 2]), 2.5);
});

test("the median sorts by value, not by text, and leaves its argument alone", () => {
  const values = [100, 9, 20];
  assert.equal(median(values), 20);
  assert.deepEqual(values, [100, 9, 20]);
});

test("a summary has the extremes", () => {
  assert.deepEqual(summary([3, 1, 2]), {median: 2, min: 1, max: 3});
});

test("a ratio is of the medians, its spread of the rounds", () => {
  assert.deepEqual(ratio([10, 30, 20], [10, 10, 5]), {ofMedians: 2, min: 1, max: 4});
});
