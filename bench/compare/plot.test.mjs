import assert from "node:assert/strict";
import test from "node:test";

import {ratioPlot, ticksFor} from "./plot.mjs";

test("ticks reach the largest value", () => {
  assert.deepEqual(ticksFor(1), [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]);
  assert.deepEqual(ticksFor(4.4), [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5]);
  assert.deepEqual(ticksFor(13), [0, 2, 4, 6, 8, 10, 12, 14]);
  assert.deepEqual(ticksFor(70), [0, 10, 20, 30, 40, 50, 60, 70]);
});

test("a bar ends at the ratio of medians, its spread at the least and the most", () => {
  const svg = ratioPlot([{name: "a <b>", ratio: {ofMedians: 2, min: 1, max: 4}}], "t & u");
  assert.match(svg, /^<svg [^>]*aria-label="t &#38; u">/);
  assert.match(svg, />a &#60;b&#62;</);
  const bar = svg.match(/<rect x="210" y="46" width="(\d+)"/);
  assert.equal(Number(bar[1]), 260);
  assert.match(svg, /<line x1="340" x2="730" y1="55"/);
});
