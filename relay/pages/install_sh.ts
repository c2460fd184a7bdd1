/**
 * `/install.sh`: POSIX sh, for dash, bash and BusyBox. Nothing in it runs before its last character
 * has come, so a download that broke off does nothing. What the relay puts in is checked by `facts`.
 */
import type { InstallFacts } from '../install.ts'

export function installSh({ origin, keys }: InstallFacts): string {
  return SCRIPT.replaceAll('@ORIGIN@', origin).replaceAll('@KEYS@', keys.join(' '))
    .replaceAll('@RELAY@', origin.replace('https://', ''))
}

const SCRIPT = `#!/bin/sh
# Installs sotto, or brings it up to date, from the relay @ORIGIN@
#
#   curl -fsSL @ORIGIN@/install.sh | sh
#   curl -fsSL @ORIGIN@/install.sh | sh -s -- --help
#
# Whom you trust by that: this text and the key in it came from the relay, so this first time you trust
# the relay, and TLS on the way. The signature protects you from everybody else who keeps the files. To
# trust the relay with nothing, fetch the program and SHA256SUMS.minisig from @ORIGIN@/download/
# and check them with minisign and the key that the people who make sotto publish elsewhere.

usage() {
  cat <<'END'
usage: install.sh [flags]
  --dir DIR            install to DIR (default: ~/.local/bin; for root /usr/local/bin)
  --version VERSION    install no other version; an older one than is installed is allowed then
  --require-signature  install nothing unless a signature was checked; needs minisign
  --no-completions     add no completion to bash, zsh and fish
  --uninstall          remove the program and its completions; keys and settings stay
  --help               print this
END
}

say() {
  printf '%s\\n' "$*"
}

fail() {
  printf 'install.sh: %s\\n' "$1" >&2
  if [ -n "\${2:-}" ]; then printf '%s\\n' "$2" >&2; fi
  printf 'Nothing was changed.\\n' >&2
  exit 1
}

has() {
  command -v "$1" >/dev/null 2>&1
}

clean() {
  if [ -n "$work" ]; then rm -rf "$work"; fi
  if [ "$placed" = no ]; then
    if [ "$made_dir" = yes ]; then rmdir "$dir" 2>/dev/null || :; fi
    if [ "$made_parent" = yes ]; then rmdir "$parent" 2>/dev/null || :; fi
  fi
}

read_flags() {
  while [ $# -gt 0 ]; do
    case $1 in
    --dir | --version)
      if [ $# -lt 2 ] || [ -z "$2" ]; then fail "$1: found nothing after it, expected a value"; fi
      if [ "$1" = --dir ]; then dir=$2; else version=$2; fi
      shift
      ;;
    --require-signature) require=yes ;;
    --no-completions) completions=no ;;
    --uninstall) uninstall=yes ;;
    --help)
      usage
      exit 0
      ;;
    *) fail "found the unknown flag $1" 'See --help.' ;;
    esac
    shift
  done
  if [ -z "$dir" ]; then
    if [ "$(id -u)" = 0 ]; then
      dir=/usr/local/bin
    elif [ -n "\${HOME:-}" ]; then
      dir=$HOME/.local/bin
    else
      fail 'Cannot choose a folder: HOME is not set' 'Say --dir DIR.'
    fi
  fi
  case $dir in
  /*) ;;
  *) dir=$(pwd)/$dir ;;
  esac
  parent=$(dirname "$dir")
  program=$dir/sotto
}

# Which file of the release is for this machine.
choose() {
  system=$(uname -s)
  machine=$(uname -m)
  case $machine in
  x86_64 | amd64) machine=x64 ;;
  aarch64 | arm64) machine=arm64 ;;
  *) fail "Cannot install on $machine: there are programs for x86-64 and arm64 alone" ;;
  esac
  case $system in
  Linux) choose_linux ;;
  Darwin)
    # A shell that is translated says x86_64 on a machine that is not.
    if [ "$(sysctl -n hw.optional.arm64 2>/dev/null || :)" = 1 ]; then machine=arm64; fi
    file=sotto-darwin-$machine
    ;;
  MINGW* | MSYS* | CYGWIN*)
    fail 'Cannot install on Windows with this script' 'In PowerShell: irm @ORIGIN@/install.ps1 | iex'
    ;;
  *) fail "Cannot install on $system: there are programs for Linux, macOS and Windows alone" ;;
  esac
}

choose_linux() {
  if [ "$(getconf LONG_BIT 2>/dev/null || echo 64)" = 32 ]; then
    fail 'Cannot install on a 32-bit system: there are 64-bit programs alone'
  fi
  file=sotto-linux-$machine
  case $(ldd --version 2>&1 || :) in
  *musl*) libc=musl ;;
  *GNU* | *GLIBC*) libc=gnu ;;
  *)
    libc=gnu
    if [ ! -e /lib64/ld-linux-x86-64.so.2 ] && [ ! -e /lib/ld-linux-aarch64.so.1 ]; then
      for loader in /lib/ld-musl-*; do
        if [ -e "$loader" ]; then libc=musl; fi
      done
    fi
    ;;
  esac
  if [ "$libc" = musl ]; then
    file=$file-musl
  elif [ "$machine" = x64 ] && [ -r /proc/cpuinfo ] && ! grep -q avx2 /proc/cpuinfo; then
    file=$file-baseline
  fi
}

choose_tool() {
  if has curl; then
    tool=curl loader=curl
  elif has wget; then
    tool=plain loader=wget
    case $(wget --version 2>&1 || :) in
    *'GNU Wget'*) tool=wget ;;
    *) say 'note: this wget may not check who answers; curl, or the wget of GNU, does' >&2 ;;
    esac
  else
    fail 'Cannot download: found neither curl nor wget' 'Install one of them.'
  fi
  if has sha256sum; then
    hasher=sha256sum
  elif has shasum; then
    hasher=shasum
  elif has openssl; then
    hasher=openssl
  else
    fail 'Cannot check the download: found none of sha256sum, shasum and openssl'
  fi
}

# fetch NAME: the file of the release into the working folder.
fetch() {
  url=@ORIGIN@/download/$1
  code=0
  case $tool in
  curl)
    curl -fsSL --proto '=https' --proto-redir '=https' --max-redirs 5 --connect-timeout 20 \\
      --speed-limit 1 --speed-time 60 -o "$work/$1" "$url" 2>"$work/words" || code=$?
    ;;
  wget)
    wget -nv -S -t 3 -T 30 --max-redirect=5 -O "$work/$1" "$url" 2>"$work/said" || code=$?
    # It has no flag that keeps it from going on without TLS.
    if grep -qi '^ *location: *http:' "$work/said"; then
      fail "Cannot download $url: it leads to http, where anybody could answer"
    fi
    grep -v '^  ' "$work/said" >"$work/words" || :
    ;;
  *) wget -q -T 30 -O "$work/$1" "$url" 2>"$work/words" || code=$? ;;
  esac
  if [ "$code" != 0 ]; then
    cat "$work/words" >&2
    hint=
    case $code in
    # "Certificate" to curl and to wget.
    60 | 5)
      hint="Is this machine's clock right? It says $(date).
If no CA of this machine vouches for the relay: CURL_CA_BUNDLE=FILE names one to curl,
ca_certificate=FILE in ~/.wgetrc to wget." ;;
    23 | 3) hint="Is there room in $dir?" ;;
    esac
    fail "Cannot download $url: $loader ended with $code" "$hint"
  fi
}

hash_of() {
  case $hasher in
  sha256sum) sha256sum <"$1" ;;
  shasum) shasum -a 256 <"$1" ;;
  openssl) openssl dgst -sha256 -r <"$1" ;;
  esac
}

# Sets signed to the version that a release key has signed, or leaves it empty.
check_signature() {
  signed=
  why=
  if [ -z "$keys" ]; then
    why='this relay names no release key'
  elif ! has minisign; then
    why='minisign is not installed here'
  else
    fetch SHA256SUMS.minisig
    for key in $keys; do
      if comment=$(minisign -V -Q -P "$key" -x "$work/SHA256SUMS.minisig" -m "$work/SHA256SUMS" 2>/dev/null); then
        case $comment in
        'sotto '*) signed=\${comment#sotto } && signed=\${signed%% *} ;;
        esac
      fi
    done
    if [ -z "$signed" ]; then
      fail 'Cannot trust the download: its signature is not of a key in this script' \\
        'Do not run it. Tell the host of this relay.'
    fi
    say "signature: of a release key, version $signed"
  fi
  if [ -n "$why" ]; then
    if [ "$require" = yes ]; then fail "Cannot check the signature: $why"; fi
    say "signature: not checked, since $why"
  fi
}

check_sum() {
  wanted=
  while read -r sum name; do
    if [ "$name" = "$file" ]; then wanted=$sum; fi
  done <"$work/SHA256SUMS"
  if [ -z "$wanted" ]; then fail "Cannot install: this release has no $file"; fi
  fetch "$file"
  found=$(hash_of "$work/$file")
  found=\${found%% *}
  if [ "$found" != "$wanted" ]; then
    fail "Cannot trust the download: found SHA-256 $found, expected $wanted" \\
      'It broke off, or somebody changed it. Try again; if it stays so, tell the host of this relay.'
  fi
  say "SHA-256: as expected"
}

# older A B: A is a version before B; of what it cannot read it says no.
older() (
  case $1$2 in
  *[!0-9.]*) exit 1 ;;
  esac
  IFS=.
  # shellcheck disable=SC2086
  set -- $1 $2
  if [ $# -ne 6 ]; then exit 1; fi
  if [ "$1" -ne "$4" ]; then [ "$1" -lt "$4" ] || exit 1; exit 0; fi
  if [ "$2" -ne "$5" ]; then [ "$2" -lt "$5" ] || exit 1; exit 0; fi
  [ "$3" -lt "$6" ]
)

# The last word that a program says to --version.
version_of() {
  said=$("$1" --version </dev/null 2>"$work/words") || return 1
  printf '%s\\n' "\${said##* }"
}

check_version() {
  chmod 755 "$work/$file"
  if ! fresh=$(version_of "$work/$file"); then
    cat "$work/words" >&2
    hint="Programs in $dir may not be allowed to run (noexec): try --dir."
    if [ "$file" = "sotto-linux-$machine-musl" ] && [ ! -e /usr/lib/libstdc++.so.6 ]; then
      hint='The C++ library is missing. On Alpine: apk add libstdc++'
    fi
    fail 'Cannot install: the program does not run on this machine' "$hint"
  fi
  if [ -n "$signed" ] && [ "$signed" != "$fresh" ]; then
    fail "Cannot trust the download: found version $fresh, expected $signed as it is signed"
  fi
  if [ -n "$version" ] && [ "$version" != "$fresh" ]; then
    fail "Cannot install version $version: this relay hands out $fresh"
  fi
  installed=
  if [ -f "$program" ]; then installed=$(version_of "$program") || installed=unknown; fi
  if [ -n "$installed" ] && [ -z "$version" ] && older "$fresh" "$installed"; then
    fail "Cannot install version $fresh: $installed is installed, which is newer" \\
      "If you mean it: --version $fresh"
  fi
}

check_place() {
  if [ -d "$program" ]; then fail "Cannot install to $program: it is a folder"; fi
  if [ -L "$program" ]; then
    fail "Cannot install to $program: it is a link, which something else has made" \\
      'Remove it, or choose another folder with --dir.'
  fi
}

remove() {
  check_place
  if [ ! -f "$program" ]; then fail "Cannot uninstall: there is no $program" 'Say where with --dir.'; fi
  if ! rm -f "$program" 2>/dev/null; then fail "Cannot remove $program: not allowed"; fi
  # What "sotto update" keeps to go back to.
  rm -f "$dir/.sotto.previous" 2>/dev/null || :
  for shell in bash zsh fish; do
    completion_of "$shell"
    if [ -f "$place" ] && head -n 2 "$place" | grep -q '^# completion of sotto'; then
      if rm -f "$place" 2>/dev/null; then say "Removed $place."; fi
    fi
  done
  say "Removed $program."
  say 'Keys and settings stay in ~/.config/sotto and ~/.local/state/sotto; remove those too if you mean it.'
}

# Where that shell looks by itself; zsh looks where root keeps programs alone, or where it is told.
completion_of() {
  data=\${XDG_DATA_HOME:-\${HOME:-}/.local/share}
  if [ "$dir" = /usr/local/bin ]; then data=/usr/local/share; fi
  case $1 in
  bash) place=$data/bash-completion/completions/sotto ;;
  zsh) place=$data/zsh/site-functions/_sotto ;;
  fish) place=$data/fish/vendor_completions.d/sotto.fish ;;
  esac
}

# Each is a comfort: what fails is not said, and nothing else depends on it.
complete_shells() {
  if [ "$completions" = no ]; then return; fi
  added=
  for shell in bash zsh fish; do
    if ! has "$shell"; then continue; fi
    completion_of "$shell"
    case $place in
    /*) ;;
    *) continue ;;
    esac
    # A file of somebody else stays as it is.
    if [ -e "$place" ] && ! head -n 2 "$place" | grep -q '^# completion of sotto'; then continue; fi
    if ! "$program" completions "$shell" </dev/null >"$work/completion" 2>/dev/null; then continue; fi
    if ! grep -q '^# completion of sotto' "$work/completion"; then continue; fi
    if ! mkdir -p "\${place%/*}" 2>/dev/null; then continue; fi
    if ! cp "$work/completion" "$place.$$" 2>/dev/null; then continue; fi
    if ! mv -f "$place.$$" "$place" 2>/dev/null; then
      rm -f "$place.$$"
      continue
    fi
    added="$added $shell"
    if [ "$shell" = zsh ] && [ "$data" != /usr/local/share ]; then
      say "note: for zsh, before compinit in ~/.zshrc: fpath+=(\${place%/*})"
    fi
  done
  if [ -n "$added" ]; then say "completions:$added, from the next shell on"; fi
}

make_room() {
  if [ ! -d "$dir" ]; then
    if [ ! -d "$parent" ]; then made_parent=yes; fi
    made_dir=yes
    if ! mkdir -p "$dir" 2>/dev/null; then
      fail "Cannot make $dir" 'Choose another folder with --dir; this script asks nobody for more rights.'
    fi
  fi
  # Beside where it goes, so that it gets there in one step.
  if ! work=$(mktemp -d "$dir/.sotto.XXXXXX" 2>/dev/null); then
    work=
    fail "Cannot write to $dir" 'Choose another folder with --dir; this script asks nobody for more rights.'
  fi
}

finish() {
  if [ -z "$installed" ]; then
    say "Installed sotto $fresh: $program"
  else
    say "Installed sotto $fresh in place of $installed: $program"
  fi
  first=$(command -v sotto 2>/dev/null || :)
  call=sotto
  case :\${PATH:-}: in
  *:"$dir":*)
    if [ -n "$first" ] && [ "$first" != "$program" ]; then
      say "note: another one comes before it in PATH: $first"
      call=$program
    fi
    ;;
  *)
    say "note: $dir is not in PATH; a line for your shell's profile: export PATH=\\"$dir:\\$PATH\\""
    call=$program
    ;;
  esac
  say ''
  say 'Next:'
  say "  $call login @RELAY@"
  say "  $call http 3000"
}

main() {
  set -eu
  keys='@KEYS@'
  dir='' version='' require=no uninstall=no completions=yes
  work='' placed=no made_dir=no made_parent=no
  trap clean EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  read_flags "$@"
  if [ "$uninstall" = yes ]; then
    remove
    return
  fi
  choose
  choose_tool
  check_place
  # 512 MiB or more, by the shell: no file of a release is as large.
  ulimit -f 1048576 2>/dev/null || :
  make_room
  fetch SHA256SUMS
  check_signature
  check_sum
  check_version
  if ! mv -f "$work/$file" "$program" 2>"$work/words"; then
    cat "$work/words" >&2
    fail "Cannot put the program at $program"
  fi
  placed=yes
  complete_shells
  finish
}

{ main "$@"; }
`
