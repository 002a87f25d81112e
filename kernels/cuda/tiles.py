"""Which tile of a product is whose: each block has one, of the whole product or of one part of its steps."""

from fastperm.kernels.cuda.compiling import device


def count_tiles(
    tile,  # with numbers of rows and columns
    rows,
    columns,
):
    """Return how many tiles a matrix has."""
    return -(-rows // tile.rows) * -(-columns // tile.columns)


def own_tile_of(rows_tile, columns_tile):
    """Return a function that gives a block its first row and column, and the number of its part."""

    @device
    def own_tile(block, rows, columns):
        column_tiles = (columns + columns_tile - 1) // columns_tile
        row_tiles = (rows + rows_tile - 1) // rows_tile
        # Neighbouring blocks share rows of A, the larger matrix.
        first_column = block % column_tiles * columns_tile
        first_row = block // column_tiles % row_tiles * rows_tile
        return first_row, first_column, block // column_tiles // row_tiles

    return own_tile
