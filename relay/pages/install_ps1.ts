/**
 * `/install.ps1`: the same as `/install.sh` for Windows, for PowerShell 5.1 and later. Its last character
 * closes what runs, so that a download that broke off is no script.
 */
import type { InstallFacts } from '../install.ts'

export function installPs1({ origin, keys }: InstallFacts): string {
  return SCRIPT.replaceAll('@ORIGIN@', origin)
    .replaceAll('@RELAY@', origin.replace('https://', ''))
    .replaceAll('@KEYS@', keys.map((key) => `'${key}'`).join(', '))
}

const SCRIPT = `# Installs sotto, or brings it up to date, from the relay @ORIGIN@
#
#   irm @ORIGIN@/install.ps1 | iex
#   & ([scriptblock]::Create((irm @ORIGIN@/install.ps1))) -Dir D:\\tools
#
# Whom you trust by that: this text and the key in it came from the relay, so this first time you trust
# the relay, and TLS on the way. The signature protects you from everybody else who keeps the files. To
# trust the relay with nothing, fetch the program and SHA256SUMS.minisig from @ORIGIN@/download/
# and check them with minisign and the key that the people who make sotto publish elsewhere.
param(
  [string]$Dir = (Join-Path $env:LOCALAPPDATA 'Programs\\sotto'),
  [string]$Version = '',
  [switch]$RequireSignature,
  [switch]$Uninstall
)

function Get-ReleaseFile([string]$Name, [string]$Folder) {
  $url = "@ORIGIN@/download/$Name"
  $path = Join-Path $Folder $Name
  try { Invoke-WebRequest -UseBasicParsing -Uri $url -OutFile $path -TimeoutSec 1800 }
  catch { throw "Cannot download \${url}: $($_.Exception.Message)" }
  return $path
}

function Test-Signature([string]$Folder) {
  $keys = @(@KEYS@)
  $why = ''
  if ($keys.Count -eq 0) { $why = 'this relay names no release key' }
  elseif (-not (Get-Command minisign -ErrorAction SilentlyContinue)) {
    $why = 'minisign is not installed here'
  }
  if ($why) {
    if ($RequireSignature) { throw "Cannot check the signature: $why" }
    Write-Host "signature: not checked, since $why"
    return ''
  }
  $sums = Join-Path $Folder 'SHA256SUMS'
  $signature = Get-ReleaseFile 'SHA256SUMS.minisig' $Folder
  foreach ($key in $keys) {
    $comment = & minisign -V -Q -P $key -x $signature -m $sums
    if ($LASTEXITCODE -eq 0 -and "$comment" -cmatch '^sotto (\\S+)( \\d{4}-\\d\\d-\\d\\d)?$') {
      Write-Host "signature: of a release key, version $($Matches[1])"
      return $Matches[1]
    }
  }
  throw 'Cannot trust the download: its signature is not of a key in this script'
}

function Install-Sotto {
  $ErrorActionPreference = 'Stop'
  $ProgressPreference = 'SilentlyContinue'
  [Net.ServicePointManager]::SecurityProtocol =
    [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12
  $program = Join-Path $Dir 'sotto.exe'
  $old = "$program.old"
  if ($Uninstall) {
    if (-not (Test-Path -LiteralPath $program -PathType Leaf)) {
      throw "Cannot uninstall: there is no $program"
    }
    Remove-Item -LiteralPath $program
    foreach ($kept in $old, (Join-Path $Dir '.sotto.previous.exe')) {
      if (Test-Path -LiteralPath $kept) { Remove-Item -LiteralPath $kept }
    }
    Write-Host "Removed $program. Keys and settings stay in .config\\sotto and .local\\state\\sotto."
    return
  }
  if (-not [Environment]::Is64BitOperatingSystem) {
    throw 'Cannot install on a 32-bit system: there are 64-bit programs alone'
  }
  $file = 'sotto-windows-x64.exe'
  New-Item -ItemType Directory -Force -Path $Dir | Out-Null
  $work = Join-Path $Dir ('.sotto.' + [Guid]::NewGuid().ToString('N'))
  New-Item -ItemType Directory -Path $work | Out-Null
  try {
    $sums = Get-ReleaseFile 'SHA256SUMS' $work
    $signed = Test-Signature $work
    $wanted = ''
    foreach ($line in Get-Content -LiteralPath $sums) {
      if ($line -cmatch '^([0-9a-f]{64})  (\\S+)$' -and $Matches[2] -ceq $file) { $wanted = $Matches[1] }
    }
    if (-not $wanted) { throw "Cannot install: this release has no $file" }
    $fresh = Get-ReleaseFile $file $work
    $found = (Get-FileHash -Algorithm SHA256 -LiteralPath $fresh).Hash.ToLowerInvariant()
    if ($found -cne $wanted) {
      throw "Cannot trust the download: found SHA-256 $found, expected $wanted"
    }
    Write-Host 'SHA-256: as expected'
    $said = "$(& $fresh --version)".Trim().Split(' ')[-1]
    if ($LASTEXITCODE -ne 0) { throw 'Cannot install: the program does not run on this machine' }
    if ($signed -and $signed -cne $said) {
      throw "Cannot trust the download: found version $said, expected $signed as it is signed"
    }
    if ($Version -and $Version -cne $said) {
      throw "Cannot install version \${Version}: this relay hands out $said"
    }
    $now = $null
    if (Test-Path -LiteralPath $program -PathType Leaf) {
      $installed = "$(& $program --version)".Trim().Split(' ')[-1]
      if (-not $Version -and [version]::TryParse($installed, [ref]$now) -and
        $now -gt ($said -as [version])) {
        throw "Cannot install version \${said}: $installed is installed. If you mean it: -Version $said"
      }
      # A program that runs cannot be written over; it can be moved away.
      Move-Item -Force -LiteralPath $program -Destination $old
    }
    try { Move-Item -LiteralPath $fresh -Destination $program }
    catch {
      if (Test-Path -LiteralPath $old) { Move-Item -LiteralPath $old -Destination $program }
      throw
    }
    Write-Host "Installed sotto \${said}: $program"
  }
  finally { Remove-Item -Recurse -Force -LiteralPath $work }
  $call = 'sotto'
  if (($env:Path -split ';') -notcontains $Dir) {
    Write-Host "note: $Dir is not in Path"
    $call = "& '$program'"
  }
  Write-Host ''
  Write-Host 'Next:'
  Write-Host "  $call login @RELAY@"
  Write-Host "  $call http 3000"
}

& { Install-Sotto }
`
