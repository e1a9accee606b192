#!/usr/bin/env bash
# What the pipeline is on a GPU, in one go, most telling first:
#
#     bash benchmarks/gpu.sh COCO_IMAGES CIFAR10_IMAGES OUT
#
# The GPU's tests; fused Smooth-AP beside PyTorch's form; how fast a fed step is beside one on a
# cached batch, for ResNet-18 with 8 views of 96 px × 512 images and ResNet-50 with 2 views of
# 224 px × 256; the same tuned; loaders beside their peers. Results are JSON and PNG files in OUT. A
# step that fails is reported, and the next begins.
# SECONDS_EACH, BATCH_96 and BATCH_224 make it short, to try it without a GPU.
set -u
coco=$1 cifar10=$2 out=$3
seconds=${SECONDS_EACH:-10} batch_96=${BATCH_96:-512} batch_224=${BATCH_224:-256}
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

run() {
    echo "== $*"
    "$@" || echo "== failed with code $?: $*"
}

# STL-10's layout as bare pixels, and COCO repeated until a batch of the largest step is an epoch's
# eighth: an epoch's end should not be what is measured.
run python -m tools.shard sample --root "$scratch/sample" --split unlabeled --portion 2 \
    --encoding raw --out "$scratch/raw"
mkdir "$scratch/coco"
for copy in 1 2 3 4 5 6 7 8; do
    for image in "$coco"/*; do cp "$image" "$scratch/coco/$copy-$(basename "$image")"; done
done
run python -m tools.shard folder --root "$scratch/coco" --out "$scratch/jpeg"

resnet18=(--config recipes/stl10_s2r2.yaml --shards "$scratch/raw" --batch_size "$batch_96"
    --evaluation_train null --evaluation_test null --mixed_precision bf16 --tuned none)
resnet50=(--config recipes/coco_s2r2.yaml --shards "$scratch/jpeg" --batch_size "$batch_224"
    --views.count 2 --evaluation_test null --mixed_precision bf16 --tuned none)

run python -m pytest -m gpu --numprocesses=0 -ra
run python -m benchmarks.kernel --out "$out/kernel.json"
for name in resnet18 resnet50; do
    declare -n settings=$name
    for finish in fused dali; do
        run python -m tools.bench feed "${settings[@]}" --tuning.finish $finish --seconds "$seconds" \
            --json "$out/feed-$name-$finish.json" --chart "$out/feed-$name-$finish.png"
    done
    run python -m tools.bench pipeline "${settings[@]}" --views.count 32 --seconds "$seconds" \
        --json "$out/pipeline-$name-32-views.json"
    run python -m tools.tune "${settings[@]}" --seconds "$((12 * seconds))" --out "$out/$name.yaml"
    run python -m tools.bench feed "${settings[@]}" --tuned "$out/$name.yaml" --seconds "$seconds" \
        --json "$out/feed-$name-tuned.json" --trace "$scratch/$name-trace.json"
    xz -c "$scratch/$name-trace.json" > "$out/$name-trace.json.xz"
done
run python -m tools.bench pipeline "${resnet50[@]}" --tuning.decode cache --seconds "$seconds" \
    --json "$out/pipeline-resnet50-cache.json"
run python -m benchmarks.feed views --coco "$coco" --rounds 1 --seconds "$((seconds / 2 + 1))" \
    --scratch "$scratch" --results "$out"
run python -m benchmarks.feed --coco "$coco" --cifar10 "$cifar10" --rounds 2 \
    --seconds "$((seconds / 2 + 1))" --scratch "$scratch" --results "$out"
