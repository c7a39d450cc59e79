// The gauge: how old what is shown may be, and what that means.

export const AGEING_AFTER_S = 15;
export const OLD_AFTER_S = 60;

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/** {level, age, why, fill} for the latest answer; `level` is fresh, ageing, old, unknown or unreachable. */
export function judged(freshness, isReachable, now = Date.now()) {
  if (freshness === null) return { level: "unknown", age: "…", why: "Asking the API.", fill: 0 };
  if (freshness.asOf === null) return withoutTime(freshness, isReachable);
  const seconds = Math.max(0, (now + freshness.clockOffset - freshness.asOf) / 1000);
  const at = clock.format(freshness.asOf);
  const level = levelOf(seconds, isReachable, freshness.stale !== null);
  return { level, age: `as of ${ago(seconds)}`, why: why(level, at), fill: Math.min(1, seconds / OLD_AFTER_S) };
}

function withoutTime(freshness, isReachable) {
  if (!isReachable) return { level: "unreachable", age: "no answer", why: "The API does not answer; trying again.", fill: 1 };
  if (freshness.incomplete) {
    return { level: "unknown", age: "still filling", why: `Not everything of ${freshness.incomplete} has arrived yet.`, fill: 0.5 };
  }
  return { level: "unknown", age: "no promise", why: "This source cannot say how fresh it is.", fill: 0 };
}

function levelOf(seconds, isReachable, isStale) {
  if (!isReachable) return "unreachable";
  if (isStale || seconds >= OLD_AFTER_S) return "old";
  return seconds >= AGEING_AFTER_S ? "ageing" : "fresh";
}

function why(level, at) {
  switch (level) {
    case "fresh":
      return `Every change up to ${at} is here.`;
    case "ageing":
      return `The back office answers late. Every change up to ${at} is here.`;
    case "old":
      return `The back office may be down. You see it as it was at ${at}.`;
    default:
      return `The API does not answer; trying again. You see what it said at ${at}.`;
  }
}

export function ago(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 90) return `${Math.floor(seconds)} s ago`;
  if (seconds < 90 * 60) return `${Math.floor(seconds / 60)} min ago`;
  return `${Math.floor(seconds / 3600)} h ago`;
}
