#!/usr/bin/env bash
# Watch a release:   verify.sh SETTINGS MINUTES
#
# Fails at the first look at which an alarm rings that speaks of freshness or errors, or at the end when `tidegate status` run
# inside the network finds a breach. An alarm that rang before the release is named and does not count.
set -euo pipefail

settings=$1 minutes=$2
name=$(grep -E '^Name=' "$settings" | tail -n 1 | cut -d= -f2-)
region=$(grep -E '^Region=' "$settings" | tail -n 1 | cut -d= -f2-)
gates=("$name-data-stale" "$name-api-errors" "$name-function-errors" "$name-workers-behind" "$name-database-down" "$name-bug"
  "$name-release-bug" "$name-release-refused")

ringing() {
  aws cloudwatch describe-alarms --region "$region" --alarm-names "${gates[@]}" --state-value ALARM \
    --query 'MetricAlarms[].AlarmName' --output text | tr '\t' '\n' | grep . || true
}

before=${RINGING_BEFORE-}
[ -n "$before" ] && printf 'rang before the release, not counted:\n%s\n' "$before"
for ((minute = 0; minute < minutes; minute++)); do
  new=$(comm -13 <(sort <<<"$before") <(ringing | sort))
  if [ -n "$new" ]; then
    printf 'after %s minutes:\n%s\n' "$minute" "$new" >&2
    exit 1
  fi
  sleep 60
done
tidegate ops run --name "$name" --region "$region" -- status
