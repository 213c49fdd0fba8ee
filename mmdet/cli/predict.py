"""Detect in images and videos of your own."""

import argparse
import csv
import glob
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError, at_most, one_line, suggest
from mmdet.config.output import check_writable, output_files, unused, write_atomically


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("Detect in images and videos: draw what is found, and write it in COCO's layout and as a table.", [
        'my_config.py work_dirs/my_config/epoch_12.pth photo.jpg folder_of_images film.mp4',
        "my_config.py checkpoint.pth 'scans/*.tif' --slice 640 --batch-size 8 --classes dog cat",
        'checkpoint.pth photo.jpg',
    ])
    parser.add_config_arguments('model.test_cfg.rcnn.max_per_img=50')
    parser.add_argument('checkpoint', help='weights; left out where CONFIG is a checkpoint that holds its config')
    parser.add_argument('images', nargs='*',
                        help="image or video files, patterns such as 'photos/*.jpg', or folders to search for images")
    parser.add_argument('--out-dir', default='predictions', help='folder of the results (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='minimum score to draw and to write (default: %(default)s)')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='draw and write these classes alone')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N',
                        help='images, frames or slices that go through the model at a time (default: 1)')
    parser.add_argument('--slice', type=int, metavar='PIXELS',
                        help='detect in slices of large images, so many pixels a side, and in the whole image')
    parser.add_argument('--overlap', type=float, default=0.2, help='of neighbouring slices (default: %(default)s)')
    parser.add_argument('--colour-by', choices=('class', 'instance'), default='class',
                        help='what has a colour of its own (default: class)')
    parser.add_argument('--no-draw', action='store_true', help='write the detections alone')
    parser.add_argument('--device', help='cpu or cuda:0 (default: a GPU where there is one)')
    parser.add_inference_arguments()
    args = parser.parse_args(argv)

    from mmdet.apis.export import is_exported
    from mmdet.checkpoints import is_checkpoint

    alone = is_exported(args.config) or is_checkpoint(args.config) and not is_checkpoint(args.checkpoint)
    if alone:
        args.images, args.checkpoint = [args.checkpoint, *args.images], None
    if not args.images:
        raise UserError('no images: give files, patterns or folders after the checkpoint')
    if args.batch_size < 1:
        raise UserError(f'--batch-size {args.batch_size}: at least 1 is needed')
    if args.slice is not None and args.slice < 1 or not 0 <= args.overlap < 1:
        raise UserError(f'--slice {args.slice} --overlap {args.overlap}: at least 1 pixel and less than 1 are needed')
    return args


def find_inputs(given: list[str], out_dir: Path) -> tuple[list[Path], list[Path]]:
    """The images and the videos that were asked for, each once; drawings of an earlier call are none.

    Raises:
        UserError: no such file, or no image in a folder.
    """
    from mmdet.apis.images import VIDEO_SUFFIXES, images_in

    found: dict[Path, None] = {}
    for name in given:
        matches = [Path(name)] if Path(name).exists() else map(Path, sorted(glob.glob(name, recursive=True)))
        matches = list(matches)
        if not matches or not name:  # which Path would take for this folder
            raise UserError(f'{name or repr(name)}: no such file or folder')
        for path in matches:
            if not path.is_dir():
                found[path] = None
                continue
            earlier = {out_dir} - {path, *path.parents}
            found.update(dict.fromkeys(p for p in images_in(path) if not earlier & {*p.parents}))
    videos = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES]
    return [path for path in found if path not in videos], videos


def film_files(videos: list[Path], out_dir: Path) -> dict[Path, Path]:
    """Where each video is drawn: into an .mp4 file of its name, numbered where several have one.

    Raises:
        UserError: a video would be overwritten.
    """
    places: dict[Path, Path] = {}
    for video in videos:
        places[video] = unused(out_dir / f'{video.stem}.mp4', places.values())
    lost = {video.resolve() for video in videos} & {place.resolve() for place in places.values()}
    if lost:
        raise UserError(f'{out_dir}: a drawing there would overwrite {min(lost)}; choose another folder')
    return places


class Book:
    """Where the detections are written: predictions.json in COCO's layout, and predictions.csv, one row each."""

    COLUMNS = ('file_name', 'frame', 'class', 'score', 'x1', 'y1', 'x2', 'y2')

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        self.folder, self.coco = folder, dict(images=[], annotations=[], categories=categories)
        self.table = open(folder / 'predictions.csv', 'w', newline='', encoding='utf-8')
        self.rows = csv.writer(self.table)
        self.rows.writerow(self.COLUMNS)

    def add(self, result, file_name: str, frame: int | None = None) -> None:
        height, width = result.ori_shape[:2]
        image_id = len(self.coco['images']) + 1
        image = dict(id=image_id, file_name=file_name, height=height, width=width)
        self.coco['images'].append(image if frame is None else dict(image, frame=frame))
        for entry in result.to_coco(image_id):
            self.coco['annotations'].append(dict(entry, id=len(self.coco['annotations']) + 1))
        for row in result.rows():
            numbers = [round(row[key], 2) for key in ('x1', 'y1', 'x2', 'y2')]
            place = [file_name, '' if frame is None else frame]
            self.rows.writerow([*place, row['name'], round(row['score'], 4), *numbers])

    def close(self) -> str:
        self.table.close()
        write_atomically(self.folder / 'predictions.json', json.dumps(self.coco).encode())
        images = f'{len(self.coco["images"])} images'
        return f'{self.folder / "predictions.json"}: {len(self.coco["annotations"])} detections in {images}'


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    out_dir = Path(args.out_dir)
    images, videos = find_inputs(args.images, out_dir)
    places = dict(zip(images, output_files(images, out_dir)))
    films = {} if args.no_draw else film_files(videos, out_dir)

    from mmdet.apis import init_detector
    from mmdet.apis.progress import ImageProgress

    check_writable(args.out_dir, '--out-dir')
    model = init_detector(args.config, args.checkpoint, device=args.device, cfg_options=args.cfg_options, amp=args.amp,
                          tta=args.tta, compile=args.compile)
    classes = tuple(model.dataset_meta.get('classes') or ())
    labels = chosen_labels(args.classes, classes)
    detect_in = _detector(model, args)
    book, unread, started = Book(out_dir, classes), [], time.perf_counter()
    options = dict(colour_by=args.colour_by)

    def keep(result):
        result = result.above(args.score_thr)
        return result if labels is None else result.of_labels(labels)

    try:
        with ImageProgress(len(images) if not videos else None) as bar:
            for image, result in detect_in(images, unread):
                result = keep(result)
                book.add(result, str(image))
                if not args.no_draw:
                    result.save(places[image], args.score_thr, **options)
                if not bar.visible:
                    print(f'{image if args.no_draw else places[image]}: {result.summary()}')
                bar.advance(1)
            for video in videos:
                _predict_video(video, films.get(video), detect_in, keep, book, bar, options)
    finally:
        print(book.close())  # what was found before a failure is kept
    seconds = time.perf_counter() - started
    print(f'{out_dir / "predictions.csv"}: the same as a table. {len(book.coco["images"]) / seconds:.1f} images/s')
    if unread:
        raise UserError(f'{len(unread)} of {len(places)} files are not readable images: {at_most(unread, 3)}')


def chosen_labels(names: Sequence[str] | None, classes: Sequence[str]) -> list[int] | None:
    """The labels of these classes; None for all.

    Raises:
        UserError: a class that the model does not know.
    """
    for name in names or ():
        if name not in classes:
            raise UserError(f'--classes {name}: the model knows {at_most(classes, 10)}.{suggest(name, classes)}')
    return None if names is None else [classes.index(name) for name in names]


def _detector(model, args: argparse.Namespace) -> Callable:
    """What yields (image, result) for images, batch by batch, and adds the names of unreadable ones to a list."""
    from mmengine.dataset import pseudo_collate

    from mmdet.apis.images import to_input
    from mmdet.apis.inference import detect, pipeline_of
    from mmdet.apis.results import DetResult
    from mmdet.apis.slices import detect_slices

    pipeline = pipeline_of(model.cfg)

    def readable(images, unread: list[str], read: Callable) -> Iterator:
        for image in images:
            try:
                yield image, read(image)
            except (UserError, OSError) as error:
                unread.append(str(image))
                print(f'left out: {one_line(error)}', file=sys.stderr)

    def sliced(images, unread: list[str]) -> Iterator:
        yield from readable(images, unread, lambda image: detect_slices(
            model, image, args.slice, args.overlap, args.batch_size))  # fmt: skip

    def batched(images, unread: list[str]) -> Iterator:
        batch = []
        for image, data in readable(images, unread, lambda image: pipeline(to_input(image))):
            batch.append((image, data))
            if len(batch) == args.batch_size:
                yield from results(batch)
                batch = []
        if batch:
            yield from results(batch)

    def results(batch) -> Iterator:
        samples = detect(model, pseudo_collate([data for _, data in batch]))
        for (image, _), sample in zip(batch, samples, strict=True):
            yield image, DetResult.of(sample, model.dataset_meta, image)

    return batched if args.slice is None else sliced


def _predict_video(video: Path, place: Path | None, detect_in: Callable, keep: Callable, book: Book, bar,
                   drawing: dict) -> None:
    """Every frame of a video; with a `place`, drawn by the options `drawing` of `plot` into a video there."""
    import contextlib

    import numpy as np

    try:
        import supervision as sv
    except ImportError:
        raise UserError(f'{video}: videos need supervision: pip install supervision') from None
    try:
        info = sv.VideoInfo.from_video_path(str(video))
        frames = sv.get_video_frames_generator(str(video))
    except Exception as error:  # its own kinds, and OpenCV's
        raise UserError(f'{video}: no readable video ({one_line(error)})') from None
    number = 0
    with contextlib.nullcontext() if place is None else sv.VideoSink(str(place), info) as sink:
        for number, (_, result) in enumerate(detect_in(frames, []), 1):
            result = keep(result)
            book.add(result, str(video), frame=number - 1)
            if place is not None:
                drawn = np.asarray(result.plot(0.0, zoom=1, **drawing))
                sink.write_frame(np.ascontiguousarray(drawn[..., ::-1]))
            bar.advance(1)
    if number == 0:
        raise UserError(f'{video}: no readable video (it has no frames)')
    if not bar.visible:
        print(f'{place or video}: {number} frames')
