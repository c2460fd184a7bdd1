/** Bun gives the path of a file that is imported as one, also within a built program. */
declare module '*.wasm' {
  const path: string
  export default path
}
