from quadtree_attention.data.warp import with_long_side


def test_with_long_side():
    assert with_long_side((1600, 1199), 832, 8) == (832, 616)
    assert with_long_side((600, 800), 640, 8) == (480, 640)
    assert with_long_side((300, 200), 840, 8) == (840, 560)
    assert with_long_side((1000, 769), 832, 8) == (832, 640)  # 639.8 is rounded before it is rounded down
    assert with_long_side((2000, 3), 640, 8) == (640, 8)
