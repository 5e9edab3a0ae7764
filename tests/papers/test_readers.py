"""The readers find what the published lists say, and say what is wrong with a folder."""

from dataclasses import replace

import pytest
import trees
from PIL import Image
from torchvision.datasets import Flowers102

PUBLISHED = {  # the tree, its root, and what is in it
    "cub_by_class": (lambda root: trees.birds(root / "CUB_200_2011", range(97, 105)), (16, 4, 16, 4)),
    "cub": (lambda root: trees.birds(root / "CUB_200_2011", range(97, 105)), (16, 8, 16, 8)),
    "nabirds": (lambda root: trees.birds(root / "nabirds", (3, 817, 1010)), (6, 3, 6, 3)),
    "cars_by_class": (trees.cars, (8, 2, 8, 2)),
    "cars": (trees.cars, (8, 4, 8, 4)),
    "sop": (trees.sop, (8, 4, 8, 4)),
    "aircraft": (trees.aircraft, (16, 4, 16, 4)),
    "aircraft_trainval": (trees.aircraft, (32, 4, 16, 4)),
    "flowers": (trees.flowers, (6, 3, 6, 3)),
    "dogs": (trees.dogs, (6, 3, 6, 3)),
}
LISTS = [
    ("cub_by_class", "CUB_200_2011/images.txt"),
    ("cub_by_class", "CUB_200_2011/image_class_labels.txt"),
    ("cub", "CUB_200_2011/train_test_split.txt"),
    ("nabirds", "nabirds/images.txt"),
    ("cars", "stanford_cars/devkit/cars_train_annos.mat"),
    ("cars_by_class", "stanford_cars/cars_test_annos_withlabels.mat"),
    ("sop", "Stanford_Online_Products/Ebay_test.txt"),
    ("aircraft", "fgvc-aircraft-2013b/data/variants.txt"),
    ("aircraft_trainval", "fgvc-aircraft-2013b/data/images_variant_trainval.txt"),
    ("flowers", "flowers-102/setid.mat"),
    ("dogs", "train_list.mat"),
]


@pytest.fixture(autouse=True)
def own_checksums(monkeypatch):
    """torchvision knows the sums of the published lists, which a small tree does not have."""
    files = {name: (file, None) for name, (file, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", files)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_data_set_is_read(readers, tmp_path, name):
    make, counts = PUBLISHED[name]
    make(tmp_path)
    data = readers.read(getattr(readers, name), tmp_path, other_counts=True)
    assert data.counts == readers.Counts(*counts)
    assert not data.is_published
    assert set(data.train.labels) == set(range(counts[1]))
    assert set(data.test.labels) == set(range(counts[3]))
    assert not set(data.train.paths) & set(data.test.paths)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_folder_itself_is_a_root_as_well(readers, tmp_path, name):
    PUBLISHED[name][0](tmp_path)
    inner = [path for path in tmp_path.iterdir() if path.is_dir()]
    if name != "dogs":  # its lists lie beside its images
        assert getattr(readers, name)(inner[0]) == getattr(readers, name)(tmp_path)


def test_retrieval_is_tested_on_classes_that_are_not_trained(readers, tmp_path):
    trees.birds(tmp_path / "CUB_200_2011", range(97, 105))
    data = readers.cub_by_class(tmp_path)
    assert {path.parent.name[:3] for path in data.train.paths} == {"097", "098", "099", "100"}
    assert {path.parent.name[:3] for path in data.test.paths} == {"101", "102", "103", "104"}
    trees.cars(tmp_path)
    cars = readers.cars_by_class(tmp_path)
    assert {path.name[:2] for path in cars.train.paths} == {"97", "98"}
    assert {path.parent.name for path in cars.train.paths} == {"cars_train", "cars_test"}


def test_the_published_counts_are_those_of_the_papers(readers, tmp_path):
    found = {}
    for name, (make, _) in PUBLISHED.items():
        make(tmp_path / name)
        found[name] = vars(getattr(readers, name)(tmp_path / name).published)
    totals = {name: (counts["train_images"], counts["test_images"]) for name, counts in found.items()}
    assert sum(totals["cub"]) == sum(totals["cub_by_class"]) == 11788
    assert sum(totals["cars"]) == sum(totals["cars_by_class"]) == 16185
    assert sum(totals["sop"]) == 120053
    assert totals["aircraft"] == (3334, 3333)
    assert totals["aircraft_trainval"] == (6667, 3333)
    assert totals["flowers"] == (1020, 6149)
    assert totals["dogs"] == (12000, 8580)
    assert sum(totals["nabirds"]) == 48562


def test_boxes_are_corners(readers, tmp_path):
    trees.birds(tmp_path / "CUB_200_2011", range(97, 105))
    assert set(readers.cub(tmp_path).test.boxes) == {(10.0, 5.0, 30.0, 20.0)}
    (tmp_path / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    assert readers.cub(tmp_path).test.boxes is None
    trees.cars(tmp_path)
    assert set(readers.cars(tmp_path).train.boxes) == {(5.0, 6.0, 30.0, 25.0)}


def test_flowers_and_aircraft_follow_their_lists(readers, tmp_path):
    trees.flowers(tmp_path)
    assert [path.name for path in readers.flowers(tmp_path).train.paths][:2] == ["image_00001.jpg", "image_00002.jpg"]
    assert readers.flowers(tmp_path).test.labels == [0, 0, 1, 1, 2, 2]
    trees.aircraft(tmp_path)
    assert {path.name[0] for path in readers.aircraft(tmp_path).train.paths} == {"0"}
    assert {path.name[0] for path in readers.aircraft_trainval(tmp_path).train.paths} == {"0", "1"}


@pytest.mark.parametrize(("name", "file"), LISTS)
def test_a_missing_list_is_named(readers, tmp_path, name, file):
    PUBLISHED[name][0](tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"https?://") as caught:
        readers.read(getattr(readers, name), tmp_path, other_counts=True)
    assert (tmp_path / file).name in str(caught.value) or name == "flowers"  # torchvision does not say which


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "dogs"])
def test_a_wrong_folder_is_named(readers, tmp_path, name):
    with pytest.raises(FileNotFoundError, match="holds no folder") as caught:
        getattr(readers, name)(tmp_path)
    assert "unpack it there from" in str(caught.value)


def test_a_folder_that_is_not_there(readers, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--root .* is not there"):
        readers.read(readers.cub, tmp_path / "nowhere")


def test_a_missing_image_is_named(readers, tmp_path):
    trees.sop(tmp_path)
    images = sorted(tmp_path.rglob("*.JPG"))
    images[0].unlink()
    images[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"2 images of Stanford Online Products are missing, the first .*JPG"):
        readers.read(readers.sop, tmp_path, other_counts=True)


def test_wrong_counts_are_refused_and_say_how_to_go_on(readers, tmp_path):
    trees.birds(tmp_path / "CUB_200_2011", range(97, 105))
    with pytest.raises(ValueError, match=r"5,864 training images of 100 classes.*has 16 training.*--other-counts"):
        readers.read(readers.cub_by_class, tmp_path)
    whole = replace(readers.cub_by_class(tmp_path), published=readers.Counts(16, 4, 16, 4))
    assert readers.read(lambda _: whole, tmp_path).is_published


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("image_class_labels.txt", "id-97-0 bird", "expected a class number, got 'bird'"),
        ("images.txt", "", "no line for image id-97-0"),
    ],
)
def test_lists_that_do_not_fit_together(readers, tmp_path, file, line, message):
    folder = trees.birds(tmp_path / "CUB_200_2011", range(97, 105))
    path = folder / ("image_class_labels.txt" if file == "images.txt" else file)
    kept = [text for text in path.read_text().splitlines() if not text.startswith("id-97-0 ")]
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError, match=message):
        readers.cub_by_class(tmp_path)


def test_a_list_with_other_columns(readers, tmp_path):
    trees.sop(tmp_path)
    path = tmp_path / "Stanford_Online_Products" / "Ebay_train.txt"
    path.write_text(path.read_text() + "9 9 9\n")
    with pytest.raises(ValueError, match=r"Ebay_train.txt, line 10: expected 4 columns, got 3"):
        readers.sop(tmp_path)


def test_a_broken_matlab_file(readers, tmp_path):
    trees.dogs(tmp_path)
    (tmp_path / "test_list.mat").write_bytes(b"not a MATLAB file")
    with pytest.raises(ValueError, match=r"test_list.mat cannot be read as a MATLAB file"):
        readers.dogs(tmp_path)
    trees.savemat(tmp_path / "test_list.mat", {"files": [1]})
    with pytest.raises(ValueError, match=r"test_list.mat holds no variable 'file_list'"):
        readers.dogs(tmp_path)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(path.read_bytes()[:-300]), lambda path: path.write_bytes(b"")]
)
def test_a_broken_image_is_named(readers, tmp_path, damage, small):
    path = trees.draw(tmp_path / "broken.jpg", 0)
    damage(path)
    with pytest.raises(ValueError, match=r"broken.jpg cannot be read as an image"):
        readers.load_image(path, small)


def test_grey_images_become_coloured(readers, tmp_path):
    path = tmp_path / "grey.png"
    Image.new("L", (5, 4), 7).save(path)
    assert readers.load_image(path).getpixel((0, 0)) == (7, 7, 7)


class TestOwnData:
    ROWS = ("cat,a.jpg,train", "dog,b.jpg,train", "cat,c.jpg,validation", "dog,d.jpg,validation")

    def test_classification(self, readers, tmp_path):
        data = readers.read(readers.own_by_lists, trees.table(tmp_path, self.ROWS))
        assert data.train.labels == data.test.labels == [0, 1]
        assert data.train.paths == [tmp_path / "a.jpg", tmp_path / "b.jpg"]
        assert data.published is None
        assert not data.is_published

    def test_retrieval_has_classes_of_its_own(self, readers, tmp_path):
        rows = ("1,a.jpg,train", "2,b.jpg,train", "7,c.jpg,validation", "9,d.jpg,validation")
        data = readers.read(readers.own_by_class, trees.table(tmp_path, rows))
        assert data.train.labels == data.test.labels == [0, 1]
        with pytest.raises(ValueError, match="2 classes are to be tested that are not trained, the first '7'"):
            readers.own_by_lists(tmp_path / "own.csv")

    def test_boxes_queries_and_gallery(self, readers, tmp_path):
        header = "label,path,split,is_query,is_gallery,x_1,x_2,y_1,y_2"
        rows = (
            "1,a.jpg,train,,,0,9,1,8",
            "1,b.jpg,validation,True,False,1,30,2,20",
            "1,c.jpg,validation,False,True,0,9,1,8",
        )
        data = readers.read(readers.own_by_class, trees.table(tmp_path, rows, header))
        assert data.test.boxes[0] == (1, 2, 30, 20)
        assert (data.test.query, data.test.gallery) == ([True, False], [False, True])
        assert readers.own_to_look_at(tmp_path / "own.csv").test.boxes == data.test.boxes

    @pytest.mark.parametrize(
        ("header", "rows", "message"),
        [
            ("label,file,split", ROWS, "lacks the column 'path'; it has file, label, split"),
            ("label,path,split", ("1,a.jpg,test",), "line 2: split must be train or validation, got 'test'"),
            ("label,path,split", (*ROWS, ",e.jpg,train"), "line 6: label and path must not be empty"),
            ("label,path,split,is_query", ("1,a.jpg,validation,yes",), "is_query: expected True or False"),
            ("label,path,split,x_1,x_2,y_1,y_2", ("1,a.jpg,train,left,2,3,4",), "a coordinate in pixels, got 'left'"),
            (
                "label,path,split,is_query,is_gallery",
                ("1,a.jpg,validation,True,True", "1,b.jpg,validation,True,False"),
                "1 of 2 images to search with are in the gallery, too; all or none may be",
            ),
            (
                "label,path,split,is_gallery",
                ("1,a.jpg,validation,True", "1,b.jpg,validation,False"),
                "1 of 2 images to search with are in the gallery, too; all or none may be",
            ),
            ("label,path,split,is_query,is_gallery", ("1,a.jpg,validation,True,False",), "must each be True in some"),
        ],
    )
    def test_what_is_wrong_with_the_file(self, readers, tmp_path, header, rows, message):
        path = trees.table(tmp_path, rows, header)
        with pytest.raises(ValueError, match=message):
            readers.read(readers.own_by_class, path)

    def test_a_folder_is_no_file(self, readers, tmp_path):
        with pytest.raises(ValueError, match="pass the CSV file itself"):
            readers.read(readers.own_by_lists, tmp_path)

    def test_missing_images(self, readers, tmp_path):
        path = trees.table(tmp_path, self.ROWS)
        (tmp_path / "c.jpg").unlink()
        with pytest.raises(FileNotFoundError, match=r"c.jpg; paths are relative to the CSV file's folder"):
            readers.read(readers.own_by_lists, path)

    def test_a_folder_of_images(self, readers, tmp_path):
        trees.draw(tmp_path / "deep" / "b.png", 0)
        trees.draw(tmp_path / "a.JPG", 0)
        (tmp_path / "notes.txt").touch()
        assert [path.name for path in readers.read(readers.a_folder, tmp_path).test.paths] == ["a.JPG", "b.png"]
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="no images to test on"):
            readers.read(readers.a_folder, tmp_path / "empty")
