const ROW = 34;
const LABELS = 210;
const WIDTH = 520;

const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

// Ticks of an axis from 0 to at least `largest`: 4 to 10 of them, 1, 2 or 5 times a power of ten apart.
export function ticksFor(largest) {
  const power = 10 ** Math.floor(Math.log10(largest));
  const step = [0.1, 0.2, 0.5, 1].map((factor) => factor * power).find((s) => largest / s <= 10) ?? power;
  const count = Math.ceil(largest / step - 1e-9);
  return Array.from({length: count + 1}, (_, i) => Number((i * step).toPrecision(6)));
}

// A drawing of ratios: [{name, ratio: {ofMedians, min, max}}], a bar each with its spread and a line at 1.
export function ratioPlot(results, title) {
  const ticks = ticksFor(Math.max(1, ...results.map((result) => result.ratio.max)));
  const x = (value) => LABELS + (WIDTH * value) / ticks.at(-1);
  const bottom = 40 + ROW * results.length;
  const grid = ticks.map((tick) =>
    `<line x1="${x(tick)}" x2="${x(tick)}" y1="36" y2="${bottom}" stroke="${tick === 1 ? "#555" : "#ddd"}"/>` +
    `<text x="${x(tick)}" y="${bottom + 18}" text-anchor="middle">${tick}</text>`);
  const bars = results.map(({name, ratio: r}, i) => {
    const y = 44 + ROW * i;
    return `<text x="${LABELS - 8}" y="${y + 16}" text-anchor="end">${escape(name)}</text>` +
      `<rect x="${x(0)}" y="${y + 2}" width="${x(r.ofMedians) - x(0)}" height="18" fill="#2a78b5"/>` +
      `<line x1="${x(r.min)}" x2="${x(r.max)}" y1="${y + 11}" y2="${y + 11}" stroke="#111" stroke-width="2"/>` +
      `<text x="${x(r.max) + 6}" y="${y + 16}">${r.ofMedians.toFixed(2)}</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${LABELS + WIDTH + 60} ${bottom + 30}" ` +
    `font-family="sans-serif" font-size="13" role="img" aria-label="${escape(title)}">` +
    `<rect width="100%" height="100%" fill="#fff"/><text x="${LABELS}" y="22" font-size="15">${escape(title)}</text>` +
    `${grid.join("")}<line x1="${x(1)}" x2="${x(1)}" y1="36" y2="${bottom}" stroke="#555"/>${bars.join("")}</svg>\n`;
}
