"""Name the inputs and outputs of a scoring graph. A group has P photos; a batch has B rows for T targets."""

PHOTOS = "ortcam.photos"  # [P,C,H,W] or [P,H,W,C]: the photos, or the features of a layer
PHOTO_INDEX = "ortcam.photo_index"  # int64 [B], or [1] for all rows
BANK = "ortcam.activations"  # [A,h,w]: the channels of all photos, or given maps
NUMBERS = "ortcam.channels"  # int64 [B]: the number of the mask in the bank
AFFINE = "ortcam.affine"  # [B,3,1,1]: shift, scale, offset
ROWS = (
    "ortcam.rows"  # [1,1,H,h], or [B,1,H,h] with the same matrix for every row; for grids [S,1,H,h], a matrix per shift
)
COLUMNS = "ortcam.columns"  # [w,W]; for grids [S,1,w,W]
TARGETS = "ortcam.targets"  # int64 [B,T]
REFERENCES = "ortcam.references"  # [P,R,T]: the references of each photo, of a model of another task
REFERENCE_CLASSES = "ortcam.reference_classes"  # [P,C,T]: 1 at the class of a reference, else 0
BASELINE = "ortcam.baseline"  # [1,C,H,W], or [1,H,W,C]; an axis may be 1
NOISE = "ortcam.noise"  # [H+S,W+S]: a plane of random numbers
NOISE_SAMPLE = "ortcam.noise_sample"  # int64 [1]: the number of the draw
OTHER_TOKENS = "ortcam.other_tokens"  # [P,O,D]: the tokens of each photo that are no patches
GRID_CELLS = "ortcam.grid_cells"  # int64 [s,s]: the first term of the hash of each cell
GRID_SHIFTS = "ortcam.grid_shifts"  # int64 [2]: the first terms of the hashes of the shifts down and across
GRID_LIMIT = "ortcam.grid_limit"  # int64 [1]: a cell with a lower hash is shown

LOGITS = "ortcam.logits"  # [B,N]: the scores are taken from here; for a single score [B,2], its negation first
TARGET_LOGITS = "ortcam.target_logits"  # [B,T]
TARGET_LOG_PROBABILITIES = "ortcam.target_log_probabilities"  # [B,T]

LIGHT_ROWS = "ortcam.light_rows"  # a key of the metadata: for a row, the graph makes nothing but its scores
