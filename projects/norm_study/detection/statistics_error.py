"""How wrong are the norms' statistics in the runs of the study? norm-doctor's measure, on their trained weights.

    python -m projects.norm_study.detection.statistics_error --data DIR --weights FILE --trained KEEP/why-*-s3.pth

KEEP is the folder that the study was given as --keep. Each file's neck and heads take `ITERATIONS` steps at half the
run's highest rate, the mean of its schedule (at its end the rate is 0, weights stand still and every history is true).
Then BatchNorm, naive pooling and CBN are compared with many batches, as `mmdet norm-doctor` does it. The records are
results/statistics-NORM-bBATCH-sSEED.json (nuclei_statistics-... of runs on nuclei), one for each of --batches, with
norm-doctor's advice.
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from mmdet.config.output import write_atomically
from mmdet.engine import norm_doctor
from mmdet.engine.seeding import derived_seed, seed_generators
from projects.norm_study.detection import study, train

ITERATIONS = 50
TRUTH = 32  # images of the truth


def measure(detector: train.Detector, data: train.Data, cfg, batch: int, seed: int) -> dict:
    """norm-doctor's report on a detector with CBN in neck and heads; ``cfg`` has the learning rate."""
    model = detector.model.train()
    candidates = norm_doctor.Candidates(norm_doctor.normed_blocks(model))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    rate = optimizer.optimizer.param_groups[0]['lr']

    def loss(chosen: list[tuple[int, bool]], number: int) -> torch.Tensor:
        seed_generators(derived_seed(seed, 5, number))
        maps, samples = train.collate([data.views[index][mirrored] for index, mirrored in chosen], detector.device)
        with detector.autocast():
            return model.parse_losses(model.loss(maps, samples))[0]

    def step(chosen: list[tuple[int, bool]], iteration: int) -> float:
        for group in optimizer.optimizer.param_groups:
            group['lr'] = rate * min(1.0, (iteration + 1) / (ITERATIONS / 4))
        value = loss(chosen, iteration)
        optimizer.update_params(value)
        return float(value.detach())

    steps = endless(len(data), batch, seed)
    norm_doctor.train(step, steps, ITERATIONS, candidates)
    truth, probes = (list(itertools.islice(steps, n)) for n in (TRUTH // batch, norm_doctor.PROBES))
    report = norm_doctor.examine(candidates, loss, truth, probes)
    return dict(report, advice=norm_doctor.advice(report))


def endless(size: int, batch: int, seed: int) -> Iterator[list[tuple[int, bool]]]:
    """Batches of other epochs than those of the run."""
    return itertools.chain.from_iterable(
        train.batches(size, batch, 1, seed + 1000 + epoch) for epoch in itertools.count()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder with facade/ and nuclei_dsb2018/')
    parser.add_argument('--weights', type=Path, required=True, help="EfficientNet-Lite0's weights")
    parser.add_argument('--trained', type=Path, nargs='+', required=True, help='files of --keep, of BN or CBN')
    parser.add_argument('--batches', type=int, nargs='+', choices=study.BATCHES, default=study.BATCHES)
    parser.add_argument('--out', type=Path, default=study.HERE / 'results')
    parser.add_argument('--cache', type=Path, default=Path('work_dirs/norm_study'))
    args = parser.parse_args()
    MMLogger.get_instance('norm_study', log_level='ERROR')
    torch.set_num_threads(1)
    scale = study.SCALES[False]
    known = {}  # config and images, by data set
    for file, batch in itertools.product(args.trained, args.batches):
        part, norm, trained_batch, seed, rate = re.fullmatch(
            r'(\w+?)-(.+)-b(\d)-s(\d+)(?:-lr(.+))?', file.stem
        ).groups()
        prefix = 'nuclei_' if part in study.NUCLEI_PARTS else ''
        if prefix not in known:
            cfg = study.config_of(part, args.data, args.weights, scale.options)
            known[prefix] = cfg, study.data_of(cfg, args.cache)['test'][0]
        cfg, images = known[prefix]
        rate, seed = float(rate or study.best_rate(norm, scale, study.HERE / 'results')), int(seed)
        cbn = study.norm_cfg('CBN-full', cfg.model.neck.out_channels, scale.group)
        detector = train.Detector(cfg, cbn, seed)
        missing, unexpected = detector.model.load_state_dict(torch.load(file, weights_only=True), strict=False)
        if unexpected or any(not key.startswith('backbone') for key in missing):
            raise SystemExit(f'{file}: not the neck and heads of a run with BN or CBN: {(unexpected or missing)[:3]}')
        cfg.optim_wrapper.optimizer.lr = rate / 2 * (batch / 2) ** 0.5
        record = dict(norm=norm, trained_batch=int(trained_batch), batch=batch, seed=seed)
        record |= dict(iterations=ITERATIONS, truth_images=TRUTH)
        record |= measure(detector, images, cfg, batch, seed)
        path = args.out / f'{prefix}statistics-{norm}-b{batch}-s{seed}.json'
        write_atomically(path, (json.dumps(record) + '\n').encode())
        print(path.stem, *record['advice'], sep='\n', flush=True)


if __name__ == '__main__':
    main()
