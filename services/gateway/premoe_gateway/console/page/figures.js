// Figures as people read them.
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit ? count.toFixed(1) : count} ${UNITS[unit]}`;
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

export const milliseconds = (value) => (value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`);

export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
