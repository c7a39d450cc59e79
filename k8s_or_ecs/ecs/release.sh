#!/usr/bin/env bash
# Release a build, or take it back:   release.sh SETTINGS IMAGE MINUTES PACKAGE…
#
#   release.sh deploy/production.conf …@sha256:… 10 ReadsPackage=reads/1.zip IngestPackage=ingest/1.zip UserPackage=user/1.zip
#
#   IMAGE    …@sha256:…, the image of the tasks
#   MINUTES  how long the release is watched before it is final
#   PACKAGE  keys of the functions' zips in PackageBucket, as parameters of the api stack
#
# Migrate (expand only, so that the last release can go on) → tasks → the reads as a canary → watch → all requests. What fails
# after the migration puts tasks and functions back to where they were; the migration stays, the last release survives it.
set -euo pipefail

settings=$1 image=$2 minutes=$3
shift 3
packages=("$@")
here=$(cd "$(dirname "$0")" && pwd)
deploy=$here/deploy.sh
name=$(grep -E '^Name=' "$settings" | tail -n 1 | cut -d= -f2-)
region=$(grep -E '^Region=' "$settings" | tail -n 1 | cut -d= -f2-)

parameter() { # STACK NAME: what it is deployed with now; nothing before the first time
  aws cloudformation describe-stacks --region "$region" --stack-name "$name-$1" --output text \
    --query "Stacks[0].Parameters[?ParameterKey=='$2'].ParameterValue" 2>/dev/null || true
}

image_before=$(parameter services Image)
version_before=$(parameter api LiveVersion)
packages_before=()
for package in "${packages[@]}"; do
  packages_before+=("${package%%=*}=$(parameter api "${package%%=*}")")
done

take_back() {
  trap - ERR
  if [ -z "$image_before" ]; then
    echo "release: failed, and there is no release before this one to go back to" >&2
    exit 1
  fi
  echo "release: failed, going back to $image_before" >&2
  "$deploy" "$settings" ops services "Image=$image_before"
  if [ -n "$version_before" ]; then
    "$deploy" "$settings" api "${packages_before[@]}" "LiveVersion=$version_before" CanaryVersion=
  fi
  exit 1
}

# One-off tasks of the new image; a migration that fails leaves everything else as it was.
"$deploy" "$settings" ops "Image=$image"
tidegate ops run --name "$name" --region "$region" --as owner -- migrate --expand
tidegate ops run --name "$name" --region "$region" --as owner -- logins

trap take_back ERR
"$deploy" "$settings" services "Image=$image"
"$deploy" "$settings" api "${packages[@]}" "LiveVersion=${version_before:-\$LATEST}" CanaryVersion=
version=$(aws lambda publish-version --region "$region" --function-name "$name-reads" --query Version --output text)
if [ "${version_before:-\$LATEST}" != "\$LATEST" ] && [ "$version_before" != "$version" ]; then
  "$deploy" "$settings" api "${packages[@]}" "LiveVersion=$version_before" "CanaryVersion=$version"
fi
"$here/verify.sh" "$settings" "$minutes"
"$deploy" "$settings" api "${packages[@]}" "LiveVersion=$version" CanaryVersion=
echo "release: $image is live, function version $version"
