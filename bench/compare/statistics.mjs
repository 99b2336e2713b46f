export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export function summary(values) {
  return {median: median(values), min: Math.min(...values), max: Math.max(...values)};
}

// The ratio of the medians, with the smallest and largest ratio of two measurements of the same round as its spread.
export function ratio(numerators, denominators) {
  const perRound = numerators.map((value, round) => value / denominators[round]);
  return {
    ofMedians: median(numerators) / median(denominators),
    min: Math.min(...perRound),
    max: Math.max(...perRound),
  };
}
