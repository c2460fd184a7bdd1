/** The version of this program, as admission tells it to a relay. The tests hold it to package.json. */
export const VERSION = '0.1.0'
