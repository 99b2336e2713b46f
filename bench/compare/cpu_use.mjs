import fs from "node:fs";

// CPU time since boot in clock ticks: of the whole machine (and what a hypervisor took from it), and of this process
// with the children it has waited for. proc(5), /proc/stat and /proc/[pid]/stat.
export function parseTicks(machineStat, ownStat) {
  const [user, nice, system, , , irq, softirq, steal] = machineStat.split("\n")[0].trim().split(/\s+/).slice(1).map(Number);
  const own = ownStat.slice(ownStat.lastIndexOf(")") + 2).split(" ").slice(11, 15).map(Number);
  return {machine: user + nice + system + irq + softirq + steal, own: own.reduce((a, b) => a + b)};
}

export function readTicks() {
  return parseTicks(fs.readFileSync("/proc/stat", "utf8"), fs.readFileSync("/proc/self/stat", "utf8"));
}

// The cores that others kept busy between two readings `seconds` apart; Linux has 100 ticks in a second.
export function coresBusyWithOthers(before, after, seconds) {
  return Math.max(0, after.machine - before.machine - (after.own - before.own)) / 100 / seconds;
}
