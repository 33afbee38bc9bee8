#!/usr/bin/env bash
# Export and prove each recipe, or all of a plan; the Markdown goes to the job's summary. Exit code: the worst of the exports.
#
# LFM2_PLAN (a file), or LFM2_CHECKPOINT, LFM2_RECIPES (one per line), LFM2_SET (key.path=value, one per line), LFM2_EFFORT (full or quick),
# LFM2_REPORTS (folder to fill).
# Whatever they hold is passed on as arguments and never read by the shell. Works without GitHub as well.
set -uo pipefail

reports=${LFM2_REPORTS:-lfm2-export}
summary=${GITHUB_STEP_SUMMARY:-/dev/stdout}
changes=()
while IFS= read -r line; do
  if [ -n "$line" ]; then changes+=(--set "$line"); fi
done <<<"${LFM2_SET:-}"

worst=0
proven=0
mkdir -p "$reports" || exit 2

finish() {  # the step's output, and its exit code
  if [ -n "${GITHUB_OUTPUT:-}" ]; then
    if [ "$worst" -eq 0 ]; then echo "passed=true" >>"$GITHUB_OUTPUT"; else echo "passed=false" >>"$GITHUB_OUTPUT"; fi
  fi
  exit "$worst"
}

failed() {  # NAME LOG: a heading, and the last that was said
  { printf '### %s: ❌ no artifact\n\n```\n' "$1"; tail -n 5 "$2" | tr '`' "'"; printf '```\n'; } >>"$summary"
}

if [ -n "${LFM2_PLAN:-}" ]; then
  rm -f "$reports/matrix.md"
  python -m lfm2_export matrix "$LFM2_PLAN" --output "$reports" --force 2>&1 | tee "$reports/matrix.log"
  worst=${PIPESTATUS[0]}
  if [ -f "$reports/matrix.md" ]; then cat "$reports/matrix.md" >>"$summary"; else failed matrix "$reports/matrix.log"; fi
  finish
fi

while IFS= read -r recipe; do
  if [ -z "$recipe" ]; then continue; fi
  name=$(basename "$recipe" .yaml)
  rm -f "$reports/$name".{html,md,xml,json}
  python -m lfm2_export export "${LFM2_CHECKPOINT:-nano}" --recipe "$recipe" --output "$reports/$name" --force \
    --effort "${LFM2_EFFORT:-full}" \
    --report "$reports/$name.html" --report "$reports/$name.md" --report "$reports/$name.xml" \
    --report "$reports/$name.json" ${changes[@]+"${changes[@]}"} 2>&1 | tee "$reports/$name.log"
  code=${PIPESTATUS[0]}
  if [ -f "$reports/$name.md" ]; then
    cat "$reports/$name.md" >>"$summary"
  else
    failed "$name" "$reports/$name.log"
  fi
  if [ "$code" -eq 0 ]; then proven=$((proven + 1)); fi
  if [ "$code" -gt "$worst" ]; then worst=$code; fi
done <<<"${LFM2_RECIPES:-xnnpack-int8}"

if [ "$proven" -eq 0 ] && [ "$worst" -eq 0 ]; then
  echo "error: LFM2_RECIPES names no recipe" >&2
  worst=2
fi
finish
