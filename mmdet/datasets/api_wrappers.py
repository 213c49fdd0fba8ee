"""mmdetection 3's `mmdet.datasets.api_wrappers`, for code that was written for it; nothing of this project uses it."""

from collections.abc import Iterable

from pycocotools.coco import COCO as _COCO
from pycocotools.cocoeval import COCOeval

__all__ = ['COCO', 'COCOeval']
__path__: list[str] = []  # modules below it: see mmdet.moved
_Ids = Iterable[int] | int


class COCO(_COCO):
    """pycocotools' index of an annotation file, under mmdetection's names too."""

    @property
    def img_ann_map(self) -> dict[int, list[dict]]:
        return self.imgToAnns

    @property
    def cat_img_map(self) -> dict[int, list[int]]:
        return self.catToImgs

    def get_ann_ids(
        self, img_ids: _Ids = (), cat_ids: _Ids = (), area_rng: Iterable[float] = (), iscrowd: bool | None = None
    ) -> list[int]:
        return self.getAnnIds(img_ids, cat_ids, area_rng, iscrowd)

    def get_cat_ids(self, cat_names: Iterable[str] = (), sup_names: Iterable[str] = (), cat_ids: _Ids = ()) -> list:
        return self.getCatIds(cat_names, sup_names, cat_ids)

    def get_img_ids(self, img_ids: _Ids = (), cat_ids: _Ids = ()) -> list[int]:
        return self.getImgIds(img_ids, cat_ids)

    def load_anns(self, ids: _Ids) -> list[dict]:
        return self.loadAnns(ids)

    def load_cats(self, ids: _Ids) -> list[dict]:
        return self.loadCats(ids)

    def load_imgs(self, ids: _Ids) -> list[dict]:
        return self.loadImgs(ids)
