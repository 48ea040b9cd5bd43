# Source packages of another Debian than this one; sourced, not run.
# shellcheck shell=bash

# debian_source SUITE PACKAGE: the upstream source into the folder `source` of the current one. Lists and caches of its own: the
# system's apt does not learn of the other Debian, so nothing of it is ever installed.
debian_source() {
    local suite=$1 package=$2 mirror options
    command -v apt-get >/dev/null || die "no apt-get here, to get the source of $package"
    # shellcheck disable=SC2016  # apt's own placeholder
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
    [ -n "$mirror" ] || die "apt knows no mirror of Debian"
    mkdir -p lists/partial cache/archives/partial
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >sources.list
    options=(-q -o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$PWD/lists"
        -o "Dir::Cache=$PWD/cache" -o "APT::Sandbox::User=$(id -un)")
    apt-get "${options[@]}" update
    apt-get "${options[@]}" source --download-only "$package"
    mkdir source
    tar -xf "${package}"_*.orig.tar.* -C source --strip-components=1
}
