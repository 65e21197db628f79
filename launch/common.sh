# shellcheck shell=bash
# What the launch scripts share: options, complaints, dry runs.
#
# A script sets `options` (names that take --name=value) and `switches` (names that take --name); each becomes a variable, "-" in it
# an "_", which keeps its value from before where it is not given. Words after "--" go into `command`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT

options=() switches=() actions=()
dry_run=""
command=()

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

is_one_of() { # WORD KNOWN...
  local word=$1 known
  shift
  for known in "$@"; do
    [[ $word != "$known" ]] || return 0
  done
  return 1
}

parse() {
  local word # not a name that an option may have: locals hide the variables to be set
  while (($#)); do
    word=${1#--}
    word=${word%%=*}
    if [[ $1 == -- ]]; then
      shift
      command=("$@")
      return
    elif [[ $1 == --*=* ]] && is_one_of "$word" "${options[@]}"; then
      printf -v "${word//-/_}" '%s' "${1#*=}"
    elif [[ $1 == "--$word" ]] && is_one_of "$word" "${switches[@]}" dry-run; then
      printf -v "${word//-/_}" yes
    else
      fail "unknown option $1: see the head of this file"
    fi
    shift
  done
}

require() { # OPTION...
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || fail "--$option=... is missing"
  done
}

quoted_command() { # what follows "--", for another shell; complains where nothing does
  ((${#command[@]})) || fail "give the command after --, such as: -- srlhfv ppo_lag --workdir=/mnt/runs/first"
  printf '%q ' "${command[@]}"
}

do_it() { # a command, or in a dry run its text
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

dispatch() { # ACTION ARGUMENT... -- KNOWN ACTIONS are in `actions`
  local action=${1-}
  is_one_of "$action" "${actions[@]}" || fail "expected one of ${actions[*]}, got '$action': see the head of this file"
  shift
  parse "$@"
  "$action"
}
