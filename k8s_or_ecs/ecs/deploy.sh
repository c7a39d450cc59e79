#!/usr/bin/env bash
# Deploy stacks of one deployment, in the order given:   deploy.sh SETTINGS STACK…
#
#   deploy.sh deploy/production.conf network data identity ops
#   deploy.sh deploy/production.conf services Image=…@sha256:…        a parameter here wins over the file
#   REVIEW=1 deploy.sh …                                              make the change sets, show them, change nothing
#
# SETTINGS has a line Parameter=value for each parameter; each stack takes those that its template knows. A line
# stack.Parameter=value is for that stack only. Name, Region, EdgeRegion and StackRole (optional) are read here.
set -euo pipefail

settings=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
stacks=() given=()
for word in "$@"; do
  case $word in
    *=*) given+=("$word") ;;
    *) stacks+=("$word") ;;
  esac
done

setting() { # NAME [DEFAULT]
  { grep -E "^$1=" "$settings" || true; } | tail -n 1 | cut -d= -f2- | grep . || printf '%s\n' "${2-}"
}

name=$(setting Name)
region=$(setting Region "${AWS_REGION-}")
role=$(setting StackRole)
: "${name:?Name is missing in $settings}" "${region:?Region is missing in $settings}"

parameters() { # STACK: what the template knows of the settings and of the command line, the last of a name wins
  local known
  known=$(awk '/^Parameters:/ {on = 1; next} /^[A-Za-z]/ {on = 0} on && /^  [A-Za-z0-9]+:/ {sub(/:.*/, ""); sub(/^ +/, ""); print}' "$here/$1.yaml")
  { grep -E "^[A-Za-z0-9]+=" "$settings"; grep -E "^$1\.[A-Za-z0-9]+=" "$settings" | cut -d. -f2- || true; printf '%s\n' ${given[@]+"${given[@]}"}; } |
    awk -F= -v known="$known" 'BEGIN {n = split(known, names, "\n"); for (i = 1; i <= n; i++) ok[names[i]] = 1}
      ok[$1] {if (!($1 in line)) order[++count] = $1; line[$1] = $0} END {for (i = 1; i <= count; i++) print line[order[i]]}'
}

for stack in "${stacks[@]}"; do
  where=$region
  [ "$stack" = edge ] && where=$(setting EdgeRegion us-east-1)
  mapfile -t overrides < <(parameters "$stack")
  echo "== $name-$stack in $where"
  options=(--capabilities CAPABILITY_IAM CAPABILITY_NAMED_IAM --no-fail-on-empty-changeset)
  # The pipeline stack makes the role; the others are deployed by it.
  [ -n "$role" ] && [ "$stack" != pipeline ] && options+=(--role-arn "$role")
  [ -n "${REVIEW-}" ] && options+=(--no-execute-changeset)
  aws cloudformation deploy --region "$where" --stack-name "$name-$stack" --template-file "$here/$stack.yaml" \
    --parameter-overrides "${overrides[@]}" --tags "tidegate=$name" "${options[@]}" | tee "${TMPDIR:-/tmp}/deploy.$$"
  if [ -n "${REVIEW-}" ] && change=$(grep -oE 'arn:[^ ]+changeSet[^ ]+' "${TMPDIR:-/tmp}/deploy.$$"); then
    aws cloudformation describe-change-set --region "$where" --change-set-name "$change" --output table \
      --query 'Changes[].ResourceChange.[Action, Replacement, LogicalResourceId, ResourceType]'
    aws cloudformation delete-change-set --region "$where" --change-set-name "$change"
  fi
done
rm -f "${TMPDIR:-/tmp}/deploy.$$"
