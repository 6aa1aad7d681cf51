"""Small VCF files for tests."""

import pysam


def vcf_text(records, samples=("HG1",), header=()) -> str:
    """Records as (contig, pos, ref, alt, info, genotypes ...); `header` are extra lines."""
    lines = ["##fileformat=VCFv4.3", *header]
    lines.append("\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]))
    lines += [
        "\t".join([contig, str(pos), ".", ref, alt, ".", ".", info, "GT", *genotypes])
        for contig, pos, ref, alt, info, *genotypes in records
    ]
    return "\n".join(lines) + "\n"


def write_indexed(path, text: str):
    """Write `path` (ending in .vcf.gz) with bgzip, and its .tbi; returns path."""
    with pysam.BGZFile(str(path), "w") as file:
        file.write(text.encode())
    pysam.tabix_index(str(path), preset="vcf", force=True)
    return path
