/* Units: the ways in which one is written, and the form that all of them have here. */
#include <string.h>

#include "rewards/math/tree.h"

typedef struct unit {
    const char *word, *canonical;
} unit;

/* Plurals in -s are found without being listed. Words that say nothing have an empty form. */
static const unit units[] = {
    {"mm", "mm"},
    {"millimeter", "mm"},
    {"millimetre", "mm"},
    {"cm", "cm"},
    {"centimeter", "cm"},
    {"centimetre", "cm"},
    {"dm", "dm"},
    {"decimeter", "dm"},
    {"decimetre", "dm"},
    {"m", "m"},
    {"meter", "m"},
    {"metre", "m"},
    {"km", "km"},
    {"kilometer", "km"},
    {"kilometre", "km"},
    {"nm", "nm"},
    {"inch", "in"},
    {"inches", "in"},
    {"in", "in"},
    {"ft", "ft"},
    {"foot", "ft"},
    {"feet", "ft"},
    {"yd", "yd"},
    {"yard", "yd"},
    {"mile", "mi"},
    {"mi", "mi"},
    {"mg", "mg"},
    {"milligram", "mg"},
    {"g", "g"},
    {"gram", "g"},
    {"kg", "kg"},
    {"kilogram", "kg"},
    {"lb", "lb"},
    {"pound", "lb"},
    {"pounds", "lb"},
    {"oz", "oz"},
    {"ounce", "oz"},
    {"ton", "ton"},
    {"tonne", "tonne"},
    {"ms", "ms"},
    {"millisecond", "ms"},
    {"s", "s"},
    {"sec", "s"},
    {"second", "s"},
    {"min", "min"},
    {"minute", "min"},
    {"h", "h"},
    {"hr", "h"},
    {"hour", "h"},
    {"day", "day"},
    {"week", "week"},
    {"month", "month"},
    {"year", "year"},
    {"yr", "year"},
    {"l", "L"},
    {"L", "L"},
    {"liter", "L"},
    {"litre", "L"},
    {"ml", "mL"},
    {"mL", "mL"},
    {"milliliter", "mL"},
    {"millilitre", "mL"},
    {"gallon", "gal"},
    {"gal", "gal"},
    {"quart", "qt"},
    {"pint", "pt"},
    {"cup", "cup"},
    {"n", "n"},
    {"N", "N"},
    {"newton", "N"},
    {"J", "J"},
    {"joule", "J"},
    {"kJ", "kJ"},
    {"W", "W"},
    {"watt", "W"},
    {"kW", "kW"},
    {"V", "V"},
    {"volt", "V"},
    {"A", "A"},
    {"amp", "A"},
    {"ampere", "A"},
    {"ohm", "ohm"},
    {"Hz", "Hz"},
    {"hertz", "Hz"},
    {"Pa", "Pa"},
    {"pascal", "Pa"},
    {"K", "K"},
    {"kelvin", "K"},
    {"mol", "mol"},
    {"mole", "mol"},
    {"degree", "degree"},
    {"deg", "degree"},
    {"rad", "radian"},
    {"radian", "radian"},
    {"dollar", "$"},
    {"usd", "$"},
    {"USD", "$"},
    {"buck", "$"},
    {"cent", "cent"},
    {"euro", "euro"},
    {"eur", "euro"},
    {"rupee", "rupee"},
    {"mph", "mi/h"},
    {"kph", "km/h"},
    {"kmh", "km/h"},
    {"percent", "%"},
    {"pct", "%"},
    {"percentage", "%"},
    {"square", "square "},
    {"sq", "square "},
    {"cubic", "cubic "},
    {"cu", "cubic "},
    {"per", "/"},
    {"unit", ""},
    {"the", ""},
    {"of", ""},
    {"total", ""},
    {"in", "in"},
    {"about", ""},
};

static const unit *unit_find(const char *word, size_t n) {
    for (int plural = 0; plural < 2; plural++) {
        if (plural && (n < 4 || word[n - 1] != 's')) break;
        size_t m = n - (size_t)plural;
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (strlen(units[i].word) == m && memcmp(units[i].word, word, m) == 0) return &units[i];
    }
    return NULL;
}

bool ifl_math_unit_known(const char *word, size_t n) {
    const unit *found = unit_find(word, n);
    return found && *found->canonical;
}

/* Words that change the value before them, or begin another answer: behind them it is no unit. */
static bool changes_value(const char *word, size_t n) {
    static const char *const words[] = {
        "squared", "cubed",    "factorial",  "plus",     "minus",   "times",   "half",     "halves",
        "third",   "quarter",  "hundred",    "thousand", "million", "billion", "trillion", "dozen",
        "pi",      "to",       "through",    "over",     "divided", "point",   "negative", "root",
        "not",     "other",    "than",       "except",   "less",    "more",    "mod",      "modulo",
        "choose",  "infinity", "multiplied", "power",    "raised",  "added",   "twice",    "double",
        "and",     "or",       "but",        "either",   "maybe",   "between", "versus",   "sqrt"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strlen(words[i]) == n && memcmp(words[i], word, n) == 0) return true;
    return false;
}

bool ifl_math_unit_word(char *out, size_t n_max, const char *word, size_t n) {
    char lower[64];
    size_t used = strlen(out);
    if (n == 0 || n >= sizeof lower) return n == 0;
    const unit *found = unit_find(word, n);
    for (size_t i = 0; i < n; i++)
        lower[i] = (char)(word[i] >= 'A' && word[i] <= 'Z' ? word[i] + 32 : word[i]);
    if (!found && n > 2) found = unit_find(lower, n);
    if (changes_value(lower, n) || (n > 1 && lower[n - 1] == 's' && changes_value(lower, n - 1)))
        return false;
    if (n == 1 && !found && (unsigned char)*word < 0x80) return false; /* a variable */
    const char *text = found ? found->canonical : lower;
    size_t m = found ? strlen(text) : n;
    if (!found && m > 3 && text[m - 1] == 's') m--;
    bool apart = used > 0 && m > 0 && text[0] != '/' && !strchr("/ ", out[used - 1]);
    if (used + m + 2 > n_max) return false;
    if (apart) out[used++] = ' ';
    memcpy(out + used, text, m);
    out[used + m] = 0;
    return true;
}
