#!/usr/bin/env bash
# The light install alone: a fresh environment with the built package and its dependencies, nothing else. Its
# size, the time of --help, and the main job: packed for a device, checked, run. Everything happens in a folder
# outside the checkout, as on a user's machine.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
limit_mib=170 # four in five of it are numpy, tokenizers and what those bring, in their newest versions
help_ms=300

python=$(tools/prerequisites.sh)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
bin=$folder/venv/bin
before=$(du -sk "$folder/venv" | cut -f1)
"$bin/python" -m pip --disable-pip-version-check --quiet install -c constraints.txt .
cd "$folder"

size=$(du -sk venv | cut -f1)
parts=$("$bin/python" - <<'PY'
from pathlib import Path
import haversack
root = Path(haversack.__file__).parent
folders = (root / "reference_models", root / "collect" / "app")
print(*(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024 for folder in folders))
PY
)
read -r weights phone <<<"$parts"
mib=$(((size - before - weights - phone) / 1024))
apart="weights: $((weights / 1024)) MiB, the phone app: $((phone / 1024)) MiB"
echo "light install: $mib MiB, of at most $limit_mib (apart: $apart)"
[ "$mib" -le "$limit_mib" ] || { echo "the light install is too large" >&2; exit 1; }

for extra in torch transformers onnx fastapi; do
    if "$bin/python" -c "import $extra" 2>/dev/null; then
        echo "the light install brings $extra" >&2
        exit 1
    fi
done

"$bin/haversack" --help >/dev/null
best=$("$bin/python" - "$bin/haversack" <<'PY'
import subprocess, sys, time
def once():
    start = time.perf_counter()
    subprocess.run([sys.argv[1], "--help"], check=True, capture_output=True)
    return time.perf_counter() - start
print(round(1000 * min(once() for _ in range(5))))
PY
)
echo "haversack --help: $best ms, of at most $help_ms"
[ "$best" -lt "$help_ms" ] || { echo "haversack --help is too slow" >&2; exit 1; }

"$bin/haversack" systems --json | "$bin/python" -c '
import json, sys
assert len(json.load(sys.stdin)["systems"]) == 58'
"$bin/haversack" devices list --json >/dev/null
"$bin/haversack" pack code --device raspberry-pi-zero-2w --ram-mib 80 --effort 30 -o code.pack --json >pack.json
"$bin/haversack" check code.pack
"$bin/haversack" run code.pack --prompt 'def read_json(path):' --max-tokens 24 --json >run.json
"$bin/python" - <<'PY'
import json
packed, ran = json.load(open("pack.json")), json.load(open("run.json"))
assert any(candidate["fits"] for candidate in packed["candidates"]), packed
assert ran["tokens"] and ran["text"], ran
assert ran["ram_mib"]["measured"] <= 80, ran["ram_mib"]
print("packed as", packed["plan"]["precision"], "and completed", repr(ran["text"][:60]))
PY
if "$bin/haversack" pack code --device raspberry-pi-zero-2w --ram-mib 1 -o no.pack 2>refusal; then
    echo "a budget of 1 MiB was accepted" >&2
    exit 1
elif [ $? -ne 2 ] || [ -e no.pack ]; then
    echo "a refused budget must exit with 2 and write nothing: $(cat refusal)" >&2
    exit 1
fi
echo "light install: works"
