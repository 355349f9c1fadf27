#!/usr/bin/env bash
# All that iqmjx needs on a machine without a network, as a folder of wheels.
#
#   launch/bundle.sh OUT [EXTRA]      here, where there is one: Linux wheels for x86-64
#   OUT/install.sh ENVIRONMENT        there: a virtual environment with iqmjx in it
#
# EXTRA is an optional dependency set of pyproject.toml: cuda13 for an NVIDIA GPU. For
# another Python than this one: PYTHON_VERSION=3.12 launch/bundle.sh OUT cuda13.
# Where files may only be of a certain size: PIECE=2000M splits OUT into OUT/pieces/*,
# and `cat OUT/pieces/* | tar x` puts it together again.
set -euo pipefail
out=${1:?usage: launch/bundle.sh OUT [EXTRA]}
extra=${2:+[$2]}
version=${PYTHON_VERSION:-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
cd "$(dirname "$0")/.."
mkdir -p "$out/wheels"
out=$(cd "$out" && pwd)

platforms=()
for glibc in $(seq 39 -1 17); do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform linux_x86_64)

python3 -m pip wheel -q --no-deps -w "$out/wheels" .
wheel=$(ls "$out"/wheels/iqmjx-*.whl)
python3 -m pip download -q -d "$out/wheels" -c constraints.txt --only-binary=:all: \
    --python-version "$version" --implementation cp "${platforms[@]}" "$wheel$extra"
cp constraints.txt "$out"

cat > "$out/install.sh" <<INSTALL
#!/usr/bin/env bash
# Makes a virtual environment with iqmjx, from the wheels beside this file alone.
set -euo pipefail
environment=\${1:?usage: install.sh ENVIRONMENT}
here=\$(cd "\$(dirname "\$0")" && pwd)
python$version -m venv "\$environment"
"\$environment/bin/pip" install -q --no-index --find-links "\$here/wheels" \\
    -c "\$here/constraints.txt" 'iqmjx$extra'
"\$environment/bin/python" -c "import iqmjx.loop, jax; print('iqmjx sees', jax.devices())"
INSTALL
chmod +x "$out/install.sh"

if [[ -n ${PIECE:-} ]]; then
    mkdir -p "$out/pieces"
    tar -C "$out" -c install.sh constraints.txt wheels |
        split -b "$PIECE" - "$out/pieces/bundle.tar."
fi
du -sh "$out"
