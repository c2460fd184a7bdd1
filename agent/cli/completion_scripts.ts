/**
 * What shells load to complete `sotto`. Each asks `sotto complete -- WORDS…` with the words before the
 * cursor, the last being typed, and gets one offer a line: the word, a tab, a few words about it.
 * Nothing of an answer is ever run or expanded. PowerShell loses empty words on their way, so that
 * `--new` stands for one at the end.
 */
export const SHELLS = ['bash', 'zsh', 'fish', 'powershell'] as const

export type Shell = (typeof SHELLS)[number]

export const SCRIPTS: Readonly<Record<Shell, string>> = {
  // Without bash-completion and for bash 3.2 too; ":" and "=" part words in bash, so they are put together.
  bash: String.raw`# completion of sotto for bash; load it by: source <(sotto completions bash)
_sotto() {
  local word offer about strip
  local -a words=()
  COMPREPLY=()
  local i=1 glue=''
  words+=('')
  while [ "$i" -le "$COMP_CWORD" ]; do
    word="\${COMP_WORDS[i]}"
    local last=$((\${#words[@]} - 1))
    case "$word" in
      :|=|::) [ "$i" -gt 1 ] && { words[last]="\${words[last]}$word"; glue=1; } ;;
      *)
        if [ -n "$glue" ]; then words[last]="\${words[last]}$word"; else words+=("$word"); fi
        glue='' ;;
    esac
    i=$((i + 1))
  done
  local typed="\${words[\${#words[@]} - 1]}"
  strip="\${typed%"\${typed##*[:=]}"}"
  while IFS=$'\t' read -r offer about; do
    [ -n "$offer" ] || continue
    offer="\${offer#"$strip"}"
    COMPREPLY+=("$(printf '%q' "$offer")")
  done < <("\${COMP_WORDS[0]}" complete -- "\${words[@]:1}" 2>/dev/null)
}
complete -o default -F _sotto sotto
`.replaceAll('\\$', '$'),
  zsh: String.raw`#compdef sotto
# completion of sotto for zsh; load it by: source <(sotto completions zsh)
_sotto() {
  local offer about
  local -a offers
  while IFS=$'\t' read -r offer about; do
    [[ -n $offer ]] && offers+=("\${offer//:/\\:}\${about:+:$about}")
  done < <("\${words[1]}" complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)
  if (( $#offers )); then
    _describe 'sotto' offers
  else
    _files
  fi
}
if [[ $funcstack[1] == _sotto ]]; then
  _sotto "$@"
else
  compdef _sotto sotto
fi
`.replaceAll('\\$', '$'),
  fish: String.raw`# completion of sotto for fish; load it by: sotto completions fish | source
function __sotto_offers
    set -l words (commandline -opc)
    set -l typed (commandline -ct)
    set -l offers ($words[1] complete -- $words[2..-1] "$typed" 2>/dev/null)
    if test (count $offers) -gt 0
        printf '%s\n' $offers
    else
        __fish_complete_path "$typed"
    end
end
complete -c sotto -e
complete -c sotto -f -a '(__sotto_offers)'
`,
  powershell: String
    .raw`# completion of sotto for PowerShell; load it by: sotto completions powershell | Out-String | Invoke-Expression
Register-ArgumentCompleter -Native -CommandName sotto -ScriptBlock {
  param($typed, $line, $cursor)
  $words = @($line.CommandElements | Where-Object { $_.Extent.StartOffset -lt $cursor } |
    Select-Object -Skip 1 | ForEach-Object { $_.ToString() })
  $new = @(if ($typed -eq '') { '--new' })
  & sotto complete @new -- @words 2>$null | ForEach-Object {
    $offer, $about = $_ -split "\t", 2
    if (-not $about) { $about = $offer }
    [System.Management.Automation.CompletionResult]::new($offer, $offer, 'ParameterValue', $about)
  }
}
`,
}
