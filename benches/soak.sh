#!/usr/bin/env bash
# Churn for a day, or for as many seconds as are given: descriptors, resident memory and tables must stay flat (tests/netns/soak.rs). Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
export ZTUN_SOAK_SECONDS="${1:-86400}"
out=$(mktemp)
trap 'rm -f "$out"' EXIT
cargo test --locked --test netns soak:: -- --ignored --nocapture 2>&1 | tee "$out"
# A filter that finds no test is no success.
grep -q '^test result: ok. 1 passed' "$out"
