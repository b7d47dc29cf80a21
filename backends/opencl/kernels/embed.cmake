# cmake -DSOURCE=kernel.cl -DRESULT=kernel.inc -P embed.cmake: the text as a raw string literal.
file(READ ${SOURCE} text)
file(WRITE ${RESULT} "R\"fth_cl(${text})fth_cl\"\n")
