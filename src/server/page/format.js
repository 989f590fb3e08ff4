// Formats numbers, durations and times.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });

/** The daemon's clock minus the browser's, in milliseconds. */
let ahead = 0;

export function syncClock(at) {
  ahead = Date.parse(at) - Date.now();
}

export const now = () => Date.now() + ahead;

export const count = (n) => whole.format(n);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** Short form for an axis: 1.2K, 3M. */
export const compact = (n) => (n < 1000 && !Number.isInteger(n) ? String(+n.toPrecision(3)) : short.format(n));

export function rate(perSecond) {
  if (perSecond === 0) return '0/s';
  if (perSecond < 0.01) return '<0.01/s';
  return `${perSecond < 10 ? +perSecond.toPrecision(2) : compact(Math.round(perSecond))}/s`;
}

export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : +n.toPrecision(3)} ${units[unit]}`;
}

/** Two units at most: `4.2 s`, `3 min 12 s`, `2 d 4 h`. */
export function duration(seconds) {
  if (seconds <= 0) return '0 s';
  if (seconds < 0.001) return '<1 ms';
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${+seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  const parts = (big, bigUnit, rest, restUnit) => (rest ? `${big} ${bigUnit} ${rest} ${restUnit}` : `${big} ${bigUnit}`);
  if (s < 3600) return parts(Math.floor(s / 60), 'min', s % 60, 's');
  const minutes = Math.floor(s / 60);
  if (minutes < 1440) return parts(Math.floor(minutes / 60), 'h', minutes % 60, 'min');
  const hours = Math.floor(minutes / 60);
  return parts(Math.floor(hours / 24), 'd', hours % 24, 'h');
}

/** In whole seconds, for text that updates every second. */
export const coarse = (seconds) => duration(seconds < 60 ? Math.max(0, Math.round(seconds)) : seconds);

export const clock = (at) => new Date(at).toISOString().slice(11, 19);
export const clockMinutes = (at) => new Date(at).toISOString().slice(11, 16);

/** With the date unless it is today. */
export function moment(at) {
  const text = new Date(at).toISOString();
  const today = new Date(now()).toISOString().slice(0, 10);
  return text.startsWith(today) ? text.slice(11, 19) : `${text.slice(0, 10)} ${text.slice(11, 19)}`;
}

/** Short form for an axis: one unit. */
export function axisSeconds(seconds) {
  if (seconds < 120) return `${+seconds.toPrecision(3)} s`;
  return seconds < 7200 ? `${+(seconds / 60).toPrecision(3)} min` : `${+(seconds / 3600).toPrecision(3)} h`;
}

export const agoText = (at) => `${coarse((now() - Date.parse(at)) / 1000)} ago`;
export const forText = (at) => `for ${coarse((now() - Date.parse(at)) / 1000)}`;
export function inText(at) {
  const seconds = (Date.parse(at) - now()) / 1000;
  return seconds < 0.5 ? 'now' : `in ${coarse(seconds)}`;
}

export const node = (url) => url.replace(/^http:\/\//, '');

const words = {
  in_flight: 'in flight', dead: 'dead letter', gave_up: 'gave up', retry_overflow: 'parked, no place in the retry queue',
  failing: 'is failing', recovering: 'is recovering', healthy: 'is healthy again', paused: 'was paused', resumed: 'was resumed',
  forgotten: 'was forgotten', renamed: 'was renamed', limited: 'has new limits',
};

export const word = (name) => words[name] ?? name.replaceAll('_', ' ');

export const write = (operation, valueBytes) => (operation === 'DELETE' ? 'DELETE' : `SET ${bytes(valueBytes)}`);

/** `0–3, 5` */
export function ranges(numbers) {
  const parts = [];
  for (const number of numbers) {
    const last = parts.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else parts.push([number, number]);
  }
  return parts.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(', ');
}

/** A sentence for an answer that lacks partitions of the cluster; empty for a whole one. */
export const lack = (partitions = []) => (partitions.length === 0 ? ''
  : `Incomplete: there is no answer for the partitions ${ranges(partitions)}.`);
